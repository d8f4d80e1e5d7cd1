"""`evaluate --predict`: files for GLUE's test server, every row once and in its place."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_models import logits_by_hand, make_pairs, save_foreign_model
from safetensors.torch import load_file, save_file

from lma_hf.cli.__main__ import main
from lma_hf.data.glue import GLUE_TASKS
from lma_hf.data.glue_server import SERVER_FILES

COLUMNS = {"rte": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis"), "stsb": ("sentence1", "sentence2")}
NLI = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}  # as some models on the hub have them
ROWS = make_pairs(29, seed=5)


def write_split(folder, task, split, rows, **labels):
    """Rows under the task's column names; without labels unless some are given."""
    folder.mkdir(parents=True, exist_ok=True)
    one, two = COLUMNS[task]
    lines = [json.dumps({one: row["one"], two: row["two"], **labels}) + "\n" for row in rows]
    (folder / f"{split}.jsonl").write_text("".join(lines))


def answers(path):
    header, *lines = path.read_text().splitlines()
    assert header == "index\tprediction"
    numbers, predictions = zip(*(line.split("\t") for line in lines), strict=True)
    assert numbers == tuple(map(str, range(len(lines))))
    return list(predictions)


@pytest.fixture(scope="module")
def nli_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nli")
    save_foreign_model("bert", folder, id2label=NLI)
    return folder


@pytest.fixture(scope="module")
def mnli_data(tmp_path_factory):
    """Test splits without labels, one with hidden ones, and diagnostics of a single row."""
    folder = tmp_path_factory.mktemp("glue")
    write_split(folder / "mnli", "mnli", "test_matched", ROWS)
    write_split(folder / "mnli", "mnli", "test_mismatched", ROWS[::-1], label=-1)
    write_split(folder / "ax", "mnli", "test", ROWS[:1])
    return folder


def flags(data_dir, model_dir, output, task="mnli"):
    found = ["--task_name", task, "--dataset", str(data_dir), "--model_dir", str(model_dir), "--max_length", "24"]
    return [*found, "--per_device_eval_batch_size", "4", "--predict", str(output)]


def words_by_hand(model_dir, rows):
    return [NLI[str(index)].lower() for index in logits_by_hand(model_dir, rows).argmax(-1).tolist()]


def check_mnli_files(output, model_dir):
    expected = words_by_hand(model_dir, ROWS)
    assert len(set(expected)) == 3
    assert answers(output / "MNLI-m.tsv") == expected
    assert answers(output / "MNLI-mm.tsv") == expected[::-1]
    assert answers(output / "AX.tsv") == expected[:1]
    assert {file.name for file in output.iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}


def test_rows_are_in_the_order_of_the_dataset(tmp_path, mnli_data, nli_dir, caplog):
    output = tmp_path / "new" / "submission"
    assert main(["evaluate", *flags(mnli_data, nli_dir, output)]) == 0
    check_mnli_files(output, nli_dir)
    assert "nothing is scored" in caplog.text


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path, mnli_data, nli_dir):
    # 29 rows in batches of 4 leave a last batch of one row, and the diagnostics leave a process without any
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "lma_hf.cli", "evaluate", *flags(mnli_data, nli_dir, tmp_path / "submission")]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    check_mnli_files(tmp_path / "submission", nli_dir)


def test_validation_is_scored_as_well_and_absent_splits_are_left_out(tmp_path, nli_dir, capsys, caplog):
    write_split(tmp_path / "glue", "mnli", "validation_matched", ROWS, label=0)
    write_split(tmp_path / "glue", "mnli", "test_matched", ROWS)
    scores = tmp_path / "scores.json"
    arguments = [*flags(tmp_path / "glue", nli_dir, tmp_path), "--max_eval_samples", "20"]
    assert main(["evaluate", *arguments, "--output_file", str(scores)]) == 0
    assert list(json.loads(scores.read_text())) == ["validation_matched"]
    assert "accuracy" in capsys.readouterr().out
    # the cap is for scores; a submission has all rows
    assert answers(tmp_path / "MNLI-m.tsv") == words_by_hand(nli_dir, ROWS)
    assert "no split 'test_mismatched'" in caplog.text
    assert not (tmp_path / "MNLI-mm.tsv").exists()
    assert not (tmp_path / "AX.tsv").exists()


def test_scores_of_a_regression(tmp_path):
    save_foreign_model("roberta", tmp_path / "model", num_labels=1)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["classifier.out_proj.bias"] += 2.5
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    write_split(tmp_path / "data", "stsb", "test", ROWS)
    assert main(["evaluate", *flags(tmp_path / "data", tmp_path / "model", tmp_path / "out", "stsb")]) == 0
    found = np.array(answers(tmp_path / "out" / "STS-B.tsv"), dtype=float)
    expected = logits_by_hand(tmp_path / "model", ROWS).flatten().clip(0, 5).numpy()
    assert len(set(found)) > 10
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.0005 + 1e-5)


def test_misuse_is_found_before_anything_is_written(tmp_path, mnli_data, nli_dir, capsys):
    def error(*arguments):
        assert main(["evaluate", *arguments]) == 2
        return capsys.readouterr().err

    output = tmp_path / "out"
    own = ["--dataset", str(mnli_data), "--model_dir", str(nli_dir), "--text_columns", "premise"]
    assert "task_name" in error(*own, "--predict", str(output))
    write_split(tmp_path / "rte", "rte", "test", ROWS)
    assert "'entailment', 'not_entailment'" in error(*flags(tmp_path, nli_dir, output, "rte"))
    write_split(tmp_path / "data", "mnli", "validation_matched", ROWS, label=0)
    assert "none of the test splits mnli/test_matched" in error(*flags(tmp_path / "data", nli_dir, output))
    assert not output.exists()
    output.mkdir()
    (output / "AX.tsv").write_text("precious")
    assert "AX.tsv already" in error(*flags(mnli_data, nli_dir, output))
    assert [(file.name, file.read_text()) for file in output.iterdir()] == [("AX.tsv", "precious")]


@pytest.mark.parametrize("task_name", GLUE_TASKS)
def test_all_rows_of_the_official_test_splits(tmp_path, glue_dir, task_name):
    files = {file.stem: file for file in (glue_dir / task_name).glob("test*.parquet")}
    wanted = [file for file in SERVER_FILES[task_name] if file.dataset_config == task_name and file.split in files]
    if not wanted:
        pytest.skip(f"the local GLUE copy has no test split of {task_name}")
    save_foreign_model("bert", tmp_path / "model", num_labels=GLUE_TASKS[task_name].num_labels, num_hidden_layers=1)
    arguments = flags(glue_dir, tmp_path / "model", tmp_path / "out", task_name)
    arguments += ["--max_eval_samples", "8", "--per_device_eval_batch_size", "512"]
    assert main(["evaluate", *arguments]) == 0
    for file in wanted:
        assert len(answers(tmp_path / "out" / file.name)) == pq.read_metadata(files[file.split]).num_rows
