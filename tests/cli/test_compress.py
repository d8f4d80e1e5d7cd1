"""`compress` without training: what lies in the folder, and what it scores."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cli.students import DISTILL, load, scores
from safetensors import SafetensorError

from lma_hf.cli.__main__ import main
from lma_hf.modeling.quantizer_lma import packed_modules


@pytest.fixture(scope="module")
def compressed(distilled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "int8"
    assert main(["compress", "--model_dir", str(distilled()), "--output_dir", str(folder)]) == 0
    return folder


def test_compress_makes_a_saved_model_small(distilled, compressed, data_flags):
    record = json.loads((compressed / "compression.json").read_text())
    # one line, which is smaller
    assert "\n" not in (compressed / "tokenizer.json").read_text(encoding="utf-8")
    weights = record["weights"]
    assert (record["recipe"], weights["bits"]) == ("int8", 8)
    assert weights["sqnr_db"] > 35
    files = sum(file.stat().st_size for file in compressed.iterdir() if file.name != "compression.json")
    assert record["folder_mb"] == files / 1e6
    assert weights["size_mb"] < 0.4 * weights["size_mb_before"]
    # 60 rows
    assert (
        abs(
            scores(compressed, data_flags)["validation"]["accuracy"]
            - scores(distilled(), data_flags)["validation"]["accuracy"]
        )
        <= 0.04
    )


def test_compress_to_a_codebook_needs_no_data(distilled, tmp_path, data_flags):
    flags = [
        "--model_dir",
        str(distilled()),
        "--output_dir",
        str(tmp_path / "pq"),
        "--recipe",
        "pq",
        "--score",
        "true",
    ]
    assert main(["compress", *flags]) == 0
    weights = json.loads((tmp_path / "pq" / "compression.json").read_text())["weights"]
    assert weights["method"] == "product"
    assert weights["linear"] == {"block_size": 2, "num_centroids": 256}
    assert weights["size_mb"] < 0.25 * weights["size_mb_before"]
    assert sorted(packed_modules(load(tmp_path / "pq"))) == sorted(weights["modules"])
    results = json.loads((tmp_path / "pq" / "results.json").read_text())
    assert results["metrics"] == scores(tmp_path / "pq", data_flags)


@pytest.mark.extended
def test_a_packed_model_teaches_and_is_exported_like_any_other(distilled, compressed, tmp_path, data_flags):
    base = ["distill", *data_flags, *DISTILL, "--max_steps", "2", "--activation", "gelu"]
    assert main([*base, "--teacher", str(compressed), "--output_dir", str(tmp_path / "taught")]) == 0
    assert packed_modules(load(tmp_path / "taught")) == {}
    for path in (distilled(), compressed):
        export = ["export", "--format", "torch", "--model_dir", str(path), "--output_dir", str(tmp_path / path.name)]
        assert main(export) == 0


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="int8"),
        pytest.param(["--recipe", "float32", "--trim_vocabulary", "true"], id="trimmed", marks=pytest.mark.extended),
    ],
)
def test_a_scored_model_has_the_records_of_a_run_and_can_be_pushed(distilled, tmp_path, data_flags, capsys, more):
    flags = ["--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--score", "true"]
    assert main(["compress", *flags, *more, *(data_flags[:4] if more else [])]) == 0
    results, before = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "small", distilled())
    )
    assert results["metrics"] == scores(tmp_path / "small", data_flags)
    assert (results["num_parameters"] < before["num_parameters"]) == bool(more)
    assert results["size_mb"] < before["size_mb"]
    assert results["compression"]["recipe"] == (more[1] if more else "int8")
    push = ["push", "--model_dir", str(tmp_path / "small"), "--repo_id", "me/small", "--dry_run", "true"]
    assert main(push) == 0
    assert "nothing was sent" in capsys.readouterr().out


def test_only_a_finished_run_is_scored(distilled, compressed, tmp_path, capsys):
    flags = ["--model_dir", str(compressed), "--output_dir", str(tmp_path / "small"), "--score", "true"]
    assert main(["compress", *flags]) == 2
    assert "holds no metrics.jsonl of a finished run; drop score" in capsys.readouterr().err


def test_compress_rounds_for_training_texts(distilled, tmp_path, data_flags):
    records = []
    for name, more in {"nearest": [], "calibrated": [*data_flags, "--calibration_samples", "64"]}.items():
        flags = ["--model_dir", str(distilled()), "--output_dir", str(tmp_path / name), "--recipe", "int2"]
        assert main(["compress", *flags, *more, "--quantize_group_size", "8"]) == 0
        records.append(json.loads((tmp_path / name / "compression.json").read_text())["weights"])
    assert [record["calibration_samples"] for record in records] == [None, 64]
    # single weights are further off, so that outputs are closer
    assert records[1]["sqnr_db"] < records[0]["sqnr_db"]
    assert scores(tmp_path / "calibrated", data_flags)["validation"]["accuracy"] >= 0.8


def test_compress_does_not_replace_the_current_folder(distilled, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "--model_dir", str(distilled()), "--output_dir", "."]) == 2
    assert "output_dir . is the current folder, which cannot be replaced" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_of_compress(distilled, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert main(["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small")]) == 2
    assert "small cannot be written: I/O error: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_for_recipes_that_train(distilled, tmp_path, capsys, monkeypatch):
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(flags) == 2
    assert "recipe is 'int8', which runs on one process" in capsys.readouterr().err


def test_calibration_texts_may_be_as_long_as_the_model_has_positions(distilled, tmp_path, data_flags, capsys):
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), *data_flags]
    assert main([*flags, "--calibration_samples", "9", "--max_length", "65"]) == 2
    assert "max_length is 65, the model allows at most 64" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    assert main([*flags, "--calibration_samples", "9", "--max_length", "64"]) == 0


def test_compress_cuts_the_vocabulary_to_the_training_texts(distilled, tmp_path, data_flags):
    flags = ["--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--trim_vocabulary", "true"]
    assert main(["compress", *flags, *data_flags[:4], "--recipe", "float32"]) == 0
    record = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert record["vocabulary"]["tokens_after"] < record["vocabulary"]["tokens_before"]
    assert record["vocabulary"]["splits"]["validation"]["unknown_share"] == 0
    assert len(load(tmp_path / "small").get_input_embeddings().weight) == record["vocabulary"]["tokens_after"]
    # its words are those of the training texts
    assert record["vocabulary"]["splits"]["validation"]["changed_share"] == 0
    assert scores(tmp_path / "small", data_flags) == scores(distilled(), data_flags)


def test_misuse_of_compress_is_one_line_and_leaves_what_is_there(tmp_path, distilled, compressed, capsys):
    before = sorted(path.read_bytes() for path in Path(compressed).iterdir())
    for flags, message in [
        (["--model_dir", str(distilled()), "--output_dir", str(compressed)], "exists and is no empty folder"),
        (["--model_dir", str(compressed), "--output_dir", str(tmp_path / "a")], "quantized already"),
        (["--model_dir", str(tmp_path / "no"), "--output_dir", str(tmp_path / "a")], "does not exist"),
        (["--model_dir", "m", "--output_dir", "a", "--recipe", "float32"], "leaves the weights as they are"),
        (
            ["--model_dir", "m", "--output_dir", "a", "--task_name", "rte"],
            "task_name is 'rte', which only trim_vocabulary or calibration_samples has use for; set that, or drop it",
        ),
        (["--model_dir", "m", "--output_dir", "a", "--resume", "true"], "recipe is 'int8', which has no resume; drop"),
        (["--model_dir", "m", "--output_dir", "a", "--recipe", "qat4", "--calibration_samples", "9"], "drop it"),
        (
            ["--model_dir", "m", "--output_dir", "a", "--recipe", "qat4", "--noise_rate", "0.1"],
            "has no noise_rate; drop",
        ),
        (["--model_dir", "m", "--output_dir", "a", "--recipe", "ipq", "--noise_rate", "1"], "between 0 and 1"),
        (
            ["--model_dir", "m", "--output_dir", "a", "--recipe", "pq", "--learning_rate", "1e-3"],
            "has no learning_rate",
        ),
        (["--model_dir", str(compressed), "--output_dir", str(tmp_path / "a"), "--recipe", "ipq"], "no run_config"),
        (["--model_dir", str(distilled()), "--output_dir", str(compressed), "--recipe", "ipq"], "holds another run"),
        (["--model_dir", "m", "--output_dir", "a", "--trim_vocabulary", "true"], "neither task_name nor text_columns"),
    ]:
        assert main(["compress", *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert sorted(path.read_bytes() for path in Path(compressed).iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "d"], "which only trim_vocabulary or calibration_samples or score has use for"),
        (["--seed", "1"], "seed is 1, which only trim_vocabulary or calibration_samples has use for"),
        (["--max_eval_samples", "9"], "max_eval_samples is 9, which only"),
        (["--per_device_eval_batch_size", "9"], "which only score has use for"),
        (["--vocabulary_min_count", "2"], "vocabulary_min_count is 2, which only trim_vocabulary has use for"),
        (["--trim_vocabulary", "true", "--task_name", "rte", "--max_length", "9"], "only calibration_samples"),
        (["--score", "true", "--max_length", "9"], "which only calibration_samples has"),
        (
            ["--recipe", "float32", "--trim_vocabulary", "true", "--modules_to_not_convert", "pooler"],
            "recipe is 'float32', which has no modules_to_not_convert; drop it",
        ),
        (["--recipe", "pq", "--quantize_group_size", "8"], "recipe is 'pq' without num_train_epochs, which has no"),
        *(
            (["--recipe", recipe, *flags], "which trains with the run's data, but ")
            for recipe in ("qat4", "ipq")
            for flags in (["--max_length", "9"], ["--seed", "1"], ["--text_columns", "text"], ["--task_name", "rte"])
        ),
    ],
)
def test_an_option_of_compress_without_effect_is_refused(tmp_path, capsys, flags, message):
    assert main(["compress", "--model_dir", "m", "--output_dir", str(tmp_path / "small"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def moved(distilled, tmp_path, data_flags):
    """(folder of a run whose data is not where it was, where the data is now)."""
    shutil.copytree(distilled(), tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "run_config.yaml").read_text())
    config["dataset"] = str(tmp_path / "gone")
    (tmp_path / "run" / "run_config.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "run"), data_flags[data_flags.index("--dataset") + 1]


@pytest.mark.parametrize("more", [["--score", "true"], ["--recipe", "qat4"]], ids=["score", "train"])
def test_compress_is_told_where_the_data_is_now(moved, tmp_path, data_flags, capsys, more):
    model_dir, dataset = moved
    flags = ["compress", "--model_dir", model_dir, "--output_dir", str(tmp_path / "small"), *more]
    assert main(flags) == 2
    assert "gone" in capsys.readouterr().err
    assert main([*flags, "--dataset", dataset, "--per_device_eval_batch_size", "7"]) == 0
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["metrics"] == scores(tmp_path / "small", data_flags)


def test_compress_scores_on_the_runs_data_though_the_vocabulary_is_cut_to_other_texts(distilled, tmp_path, data_flags):
    (tmp_path / "other").mkdir()
    rows = [{"sentence": "the film was good", "label": label} for label in ("fresh", "rotten")]
    for split in ("train", "validation"):
        (tmp_path / "other" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--recipe", "float32", "--trim_vocabulary", "true", "--score", "true", "--text_columns", "sentence"]
    flags += [
        "--model_dir",
        str(distilled()),
        "--output_dir",
        str(tmp_path / "small"),
        "--dataset",
        str(tmp_path / "other"),
    ]
    assert main(["compress", *flags]) == 0
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["metrics"] == scores(tmp_path / "small", data_flags)
