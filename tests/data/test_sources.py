import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Value
from datasets.exceptions import DatasetNotFoundError

from lma_hf.data import sources
from lma_hf.data.glue import custom_task, get_task
from lma_hf.data.sources import is_local, load_splits
from lma_hf.errors import DataError

MINE = custom_task("mine", ["text"], "label")
PAIR = custom_task("pair", ["one", "two"], "gold", label_names=["no", "yes"])
ROWS = [
    {"one": 'say "hi", now', "two": "NA", "gold": 1},
    {"one": "", "two": "007", "gold": 0},
    {"one": '"quoted" start', "two": "null", "gold": 1},
]


def write(path, rows):
    """Writes rows in the format that the path's suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def labelled(labels):
    return [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]


def load(tmp_path, labels, task=MINE, split="train", **options):
    write(tmp_path / f"{split}.jsonl", labelled(labels))
    return load_splits(str(tmp_path), task, [split], **options)


@pytest.mark.parametrize("kind", sources.FILE_TYPES)
@pytest.mark.parametrize("folder", ["pair", ""])
def test_every_format_and_layout_gives_the_same_rows(tmp_path, kind, folder):
    write(tmp_path / folder / f"train.{kind}", ROWS)
    splits, task = load_splits(str(tmp_path), PAIR, ["train"])
    assert splits["train"].to_list() == [{"one": r["one"], "two": r["two"], "label": r["gold"]} for r in ROWS]
    assert splits["train"].features["label"] == Value("int64")
    assert task.label_names == ("no", "yes")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nyu-mll/glue", False),
        ("glue", False),
        ("./glue", True),
        ("../glue", True),
        ("/glue", True),
        ("~/glue", True),
        (".", True),
        ("a/b/c", True),
    ],
)
def test_paths_and_hub_ids_are_told_apart(source, expected):
    assert is_local(source) is expected


def test_an_existing_folder_is_local_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "my" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local("my/data")


def test_nothing_is_left_in_the_cache_nor_on_screen(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = datasets.utils.are_progress_bars_disabled()
    splits, _ = load(tmp_path / "data", [0, 1, 0], max_samples={"train": 2})
    assert not splits["train"].cache_files
    assert not (tmp_path / "cache").exists()
    assert datasets.utils.are_progress_bars_disabled() == before
    assert capfd.readouterr().err == ""


def test_inferred_ids_do_not_depend_on_the_splits_asked_for(tmp_path):
    write(tmp_path / "train.csv", labelled(["a", "b", "c"]))
    write(tmp_path / "validation.csv", labelled(["c", "a"]))
    splits, task = load_splits(str(tmp_path), MINE, ["validation"])
    assert set(splits) == {"validation"}
    assert task.label_names == ("a", "b", "c")
    assert splits["validation"]["label"][:] == [2, 0]


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"folder '.*absent' does not exist; give an existing folder or a hub id"):
        load_splits(str(tmp_path / "absent"), MINE, ["train"])


def test_missing_task_folder_names_the_nearest(tmp_path):
    (tmp_path / "mines").mkdir()
    with pytest.raises(DataError, match=r"in a folder 'mine', did you mean 'mines'.*folders there: mines"):
        load_splits(str(tmp_path), MINE, ["train"])


def test_two_files_of_one_split(tmp_path):
    write(tmp_path / "train.csv", labelled([0, 1]))
    with pytest.raises(DataError, match=r"split 'train' has two files, .*keep one"):
        load(tmp_path, [0, 1])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_split_lists_the_files(tmp_path, split):
    write(tmp_path / "trains.csv", labelled([0, 1]))
    with pytest.raises(DataError, match=rf"no split '{split}' of task 'mine'.*found: trains.csv"):
        load_splits(str(tmp_path), MINE, [split])


def test_missing_further_validation_split_is_skipped_aloud(glue_dir, caplog):
    task = get_task("mnli")
    splits, _ = load_splits(str(glue_dir), task, task.validation_splits)
    assert set(splits) == {"validation_matched"}
    assert "no split 'validation_mismatched'" in caplog.text


def test_missing_column_names_the_nearest_and_the_list(tmp_path):
    write(tmp_path / "train.csv", [{"txt": "a", "label": 0}])
    with pytest.raises(DataError, match=r"no column 'text', did you mean 'txt'.*columns there: txt, label"):
        load_splits(str(tmp_path), MINE, ["train"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", ""),
        ("train.csv", "text,label\n"),
        ("train.jsonl", ""),
        ("train.parquet", "no parquet"),
        ("train.csv", "text,label\na,1,2,3\nb,1,1,1,1,1\n"),
    ],
)
def test_empty_or_broken_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"no rows can be read from .*{name}.*give a non-empty") as caught:
        load_splits(str(tmp_path), MINE, ["train"])
    assert "\n" not in str(caught.value)


# Subsets


def test_subsets_are_prefixes_of_each_other_and_depend_on_the_seed(tmp_path):
    def texts(count, seed=42):
        splits, _ = load(tmp_path, [0, 1] * 50, max_samples={"train": count}, seed=seed)
        return splits["train"]["text"][:]

    assert texts(10) == texts(30)[:10]
    assert texts(10) != texts(10, seed=1)
    assert texts(10) != [f"row {i}" for i in range(10)]
    assert texts(1000) == [f"row {i}" for i in range(100)]


def test_a_subset_does_not_change_the_inferred_classes(tmp_path):
    _, task = load(tmp_path, ["a", "b", "c", "d"], max_samples={"train": 1})
    assert task.label_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("max_samples", "message"),
    [
        ({"trian": 5}, "max_samples names the split 'trian'; allowed: train"),
        ({"train": 0}, "'train' is 0; at least 1"),
    ],
)
def test_unusable_max_samples(tmp_path, max_samples, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [0, 1], max_samples=max_samples)


# Hub


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach the Hub"), "no hub in reach to load dataset 'me/data'"),
        (DatasetNotFoundError("nope"), "'me/data' is not on the hub, or private"),
        (
            ValueError("BuilderConfig 'x' not found.\nAvailable: y"),
            r"cannot be loaded from the hub \(BuilderConfig 'x'",
        ),
    ],
)
def test_hub_problems_are_one_line_and_point_to_a_local_copy(monkeypatch, error, message):
    def fail(*args):
        raise error

    monkeypatch.setattr(sources, "load_dataset", fail)
    with pytest.raises(DataError, match=message) as caught:
        load_splits("me/data", MINE, ["train"])
    assert str(caught.value).endswith("or point to a local copy with --dataset <folder>")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset_config", ["rte", None])
def test_configuration_of_a_hub_dataset_is_passed_on(monkeypatch, dataset_config):
    rows = [dict.fromkeys(MINE.text_columns, "a") | {"label": i, "idx": i} for i in (0, 1)]
    calls = []

    def load_dataset(*args):
        calls.append(list(args))
        return datasets.DatasetDict({"train": Dataset.from_list(rows)})

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    splits, _ = load_splits("me/data", MINE, ["train"], dataset_config=dataset_config)
    assert calls == [["me/data", dataset_config]]
    assert splits["train"].column_names == [*MINE.text_columns, "label"]


# Real data


@pytest.mark.parametrize(("name", "rows"), [("cola", 1043), ("mrpc", 408), ("stsb", 1500), ("rte", 277), ("wnli", 71)])
def test_real_validation_splits(glue_dir, name, rows):
    splits, task = load_splits(str(glue_dir), get_task(name), ["validation"])
    assert splits["validation"].num_rows == rows
    assert task == get_task(name)


def test_real_hidden_test_labels(glue_dir):
    with pytest.raises(DataError, match=r"hidden \(-1 in 3000 of 3000 rows\)"):
        load_splits(str(glue_dir), get_task("rte"), ["test"])


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:90%]", range(9)),
        ("train[90%:]", [9]),
        ("train[2:5]", [2, 3, 4]),
        ("train[-3:]", [7, 8, 9]),
        ("train[:2]+train[8:]", [0, 1, 8, 9]),
    ],
)
def test_slices_are_those_of_datasets(tmp_path, split, rows):
    write(tmp_path / "train.jsonl", labelled([0, 1] * 5))
    splits, task = load_splits(str(tmp_path), MINE, [split])
    assert splits[split]["text"] == [f"row {row}" for row in rows]
    whole = datasets.load_dataset("json", data_files={"train": str(tmp_path / "train.jsonl")}, split=split)
    assert splits[split]["text"] == whole["text"]
    # one row alone must not decide which labels there are
    assert task.label_names == ("0", "1")


@pytest.mark.parametrize("split", ["train[:200%]", "train[90%", "train[]", "train[5:2]", "train[2:4]+other"])
def test_a_slice_that_is_none_is_refused(tmp_path, split):
    write(tmp_path / "train.jsonl", labelled([0, 1] * 5))
    with pytest.raises(DataError, match=r"split 'train\[.*'train'"):
        load_splits(str(tmp_path), MINE, [split])
