"""`distill --quantize` and `compress`: what is trained, what lies in the folder, and what it scores."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification

from lma_hf.cli import compressed_training
from lma_hf.cli.__main__ import main
from lma_hf.cli.distill import distill
from lma_hf.cli.evaluate import evaluate
from lma_hf.compare.profiling import count_parameters
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.compression.quantization.targets import candidates
from lma_hf.errors import TrainingError
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.schemes_lma import ScalarScheme
from lma_hf.training.config import EvaluateConfig

DISTILL = ["--num_layers", "2", "--num_train_epochs", "2", "--learning_rate", "2e-3", "--calibration_batches", "2"]
DISTILL += ["--per_device_train_batch_size", "16", "--eval_steps", "1000", "--logging_steps", "5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_flags, teacher_dir):
    """Run `distill` with more flags; returns its folder. The same flags are run once."""
    folders = {}

    def distill(*flags):
        if flags not in folders:
            folders[flags] = tmp_path_factory.mktemp("student") / "run"
            base = [*data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folders[flags]), *DISTILL]
            assert main(["distill", *base, *flags]) == 0
        return folders[flags]

    return distill


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["distill_loss"]) for line in lines if "loss" in line]


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def scores(folder, data_flags):
    dataset = data_flags[data_flags.index("--dataset") + 1]
    return evaluate(EvaluateConfig(model_dir=str(folder), dataset=dataset, text_columns=["text"], max_length=32))


@pytest.mark.parametrize(
    "flags", [["--quantize", "int4"], ["--quantize", "int2", "--quantize_group_size", "8"], ["--quantize", "pq"]]
)
def test_the_folder_holds_what_was_trained_and_scored(run, data_flags, flags):
    folder = run(*flags)
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(folder, data_flags) == results["metrics"]
    assert sorted(packed_modules(load(folder))) == sorted(results["quantization"]["modules"])
    plain = json.loads((run() / "results.json").read_text())
    assert results["size_mb"] < 0.4 * plain["size_mb"]
    assert results["num_parameters"] == count_parameters(load(folder)) == plain["num_parameters"]


def test_without_noise_it_is_plain_distillation_packed_at_the_end(run):
    plain, without_noise = run(), run("--quantize", "int4", "--noise_rate", "0")
    assert losses(plain) == losses(without_noise)
    expected = load(plain)
    quantize_(expected, ScalarScheme(4))
    found = load(without_noise).state_dict()
    assert expected.state_dict().keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_noise_changes_the_training(run):
    different = [
        losses(run(*flags)) for flags in ([], ["--quantize", "int4"], ["--quantize", "int4", "--noise_rate", "0.5"])
    ]
    assert different[0] != different[1] != different[2] != different[0]


def test_noise_of_product_quantization_leaves_an_ordinary_student(run, data_flags):
    folder = run("--quantize", "pq", "--noise_rate", "0.1")
    results = json.loads((folder / "results.json").read_text())
    assert packed_modules(load(folder)) == {}
    assert scores(folder, data_flags) == results["metrics"]
    assert losses(folder) != losses(run())
    assert losses(run("--quantize", "pq", "--noise_rate", "0")) == losses(run())


@pytest.fixture(scope="module")
def compressed(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "int8"
    assert main(["compress", "--model_dir", str(run()), "--output_dir", str(folder)]) == 0
    return folder


def test_compress_makes_a_saved_model_small(run, compressed, data_flags):
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
            - scores(run(), data_flags)["validation"]["accuracy"]
        )
        <= 0.04
    )


def test_compress_to_a_codebook_needs_no_data(run, tmp_path, data_flags):
    flags = ["--model_dir", str(run()), "--output_dir", str(tmp_path / "pq"), "--recipe", "pq", "--score", "true"]
    assert main(["compress", *flags]) == 0
    weights = json.loads((tmp_path / "pq" / "compression.json").read_text())["weights"]
    assert weights["method"] == "product"
    assert weights["linear"] == {"block_size": 2, "num_centroids": 256}
    assert weights["size_mb"] < 0.25 * weights["size_mb_before"]
    assert sorted(packed_modules(load(tmp_path / "pq"))) == sorted(weights["modules"])
    results = json.loads((tmp_path / "pq" / "results.json").read_text())
    assert results["metrics"] == scores(tmp_path / "pq", data_flags)


def test_a_packed_model_teaches_and_is_exported_like_any_other(run, compressed, tmp_path, data_flags):
    base = ["distill", *data_flags, *DISTILL, "--max_steps", "2", "--activation", "gelu"]
    assert main([*base, "--teacher", str(compressed), "--output_dir", str(tmp_path / "taught")]) == 0
    assert packed_modules(load(tmp_path / "taught")) == {}
    for path in (run(), compressed):
        export = ["export", "--format", "torch", "--model_dir", str(path), "--output_dir", str(tmp_path / path.name)]
        assert main(export) == 0


@pytest.mark.parametrize("more", [[], ["--recipe", "float32", "--trim_vocabulary", "true"]], ids=["int8", "trimmed"])
def test_a_scored_model_has_the_records_of_a_run_and_can_be_pushed(run, tmp_path, data_flags, capsys, more):
    flags = ["--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--score", "true"]
    assert main(["compress", *flags, *more, *(data_flags[:4] if more else [])]) == 0
    results, before = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "small", run()))
    assert results["metrics"] == scores(tmp_path / "small", data_flags)
    assert (results["num_parameters"] < before["num_parameters"]) == bool(more)
    assert results["size_mb"] < before["size_mb"]
    assert results["compression"]["recipe"] == (more[1] if more else "int8")
    push = ["push", "--model_dir", str(tmp_path / "small"), "--repo_id", "me/small", "--dry_run", "true"]
    assert main(push) == 0
    assert "nothing was sent" in capsys.readouterr().out


def test_only_a_finished_run_is_scored(run, compressed, tmp_path, capsys):
    flags = ["--model_dir", str(compressed), "--output_dir", str(tmp_path / "small"), "--score", "true"]
    assert main(["compress", *flags]) == 2
    assert "holds no metrics.jsonl of a finished run; drop score" in capsys.readouterr().err


def test_compress_rounds_for_training_texts(run, tmp_path, data_flags):
    records = []
    for name, more in {"nearest": [], "calibrated": [*data_flags, "--calibration_samples", "64"]}.items():
        flags = ["--model_dir", str(run()), "--output_dir", str(tmp_path / name), "--recipe", "int2"]
        assert main(["compress", *flags, *more, "--quantize_group_size", "8"]) == 0
        records.append(json.loads((tmp_path / name / "compression.json").read_text())["weights"])
    assert [record["calibration_samples"] for record in records] == [None, 64]
    # single weights are further off, so that outputs are closer
    assert records[1]["sqnr_db"] < records[0]["sqnr_db"]
    assert scores(tmp_path / "calibrated", data_flags)["validation"]["accuracy"] >= 0.8


def test_compress_does_not_replace_the_current_folder(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "--model_dir", str(run()), "--output_dir", "."]) == 2
    assert "output_dir . is the current folder, which cannot be replaced" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_of_compress(run, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert main(["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small")]) == 2
    assert "small cannot be written: I/O error: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_for_recipes_that_train(run, tmp_path, capsys, monkeypatch):
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(flags) == 2
    assert "recipe is 'int8', which runs on one process" in capsys.readouterr().err


def test_calibration_texts_may_be_as_long_as_the_model_has_positions(run, tmp_path, data_flags, capsys):
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), *data_flags]
    assert main([*flags, "--calibration_samples", "9", "--max_length", "65"]) == 2
    assert "max_length is 65, the model allows at most 64" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    assert main([*flags, "--calibration_samples", "9", "--max_length", "64"]) == 0


def test_compress_cuts_the_vocabulary_to_the_training_texts(run, tmp_path, data_flags):
    flags = ["--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--trim_vocabulary", "true"]
    assert main(["compress", *flags, *data_flags[:4], "--recipe", "float32"]) == 0
    record = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert record["vocabulary"]["tokens_after"] < record["vocabulary"]["tokens_before"]
    assert record["vocabulary"]["splits"]["validation"]["unknown_share"] == 0
    assert len(load(tmp_path / "small").get_input_embeddings().weight) == record["vocabulary"]["tokens_after"]
    # its words are those of the training texts
    assert record["vocabulary"]["splits"]["validation"]["changed_share"] == 0
    assert scores(tmp_path / "small", data_flags) == scores(run(), data_flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--noise_rate", "0.5"], "noise_rate is about quantized weights, but quantize is unset"),
        (["--modules_to_not_convert", "pooler"], "modules_to_not_convert is about quantized weights"),
        (["--quantize", "int4", "--noise_rate", "2"], "noise_rate is 2.0, allowed are 0 to 1"),
        (
            ["--quantize", "int4", "--quantize_group_size", "0"],
            "quantize_group_size is 0, allowed are numbers above 0",
        ),
        (["--quantize", "int4", "--train", "activations"], "quantize is 'int4' and train 'activations'"),
        (["--quantize", "int4", "--modules_to_not_convert", "poler"], "names 'poler', but there are"),
        (["--quantize", "int3"], "int3"),
        (
            ["--quantize", "pq", "--quantize_group_size", "8"],
            "quantize is 'pq', which has no quantize_group_size; drop it",
        ),
    ],
)
def test_misuse_of_distill_is_one_line(tmp_path, data_flags, teacher_dir, capsys, flags, message):
    base = ["distill", *data_flags, "--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student"), *DISTILL]
    assert main([*base, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_misuse_of_compress_is_one_line_and_leaves_what_is_there(tmp_path, run, compressed, capsys):
    before = sorted(path.read_bytes() for path in Path(compressed).iterdir())
    for flags, message in [
        (["--model_dir", str(run()), "--output_dir", str(compressed)], "exists and is no empty folder"),
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
        (["--model_dir", str(run()), "--output_dir", str(compressed), "--recipe", "ipq"], "holds another run"),
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
def moved(run, tmp_path, data_flags):
    """(folder of a run whose data is not where it was, where the data is now)."""
    shutil.copytree(run(), tmp_path / "run")
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


def test_compress_scores_on_the_runs_data_though_the_vocabulary_is_cut_to_other_texts(run, tmp_path, data_flags):
    (tmp_path / "other").mkdir()
    rows = [{"sentence": "the film was good", "label": label} for label in ("fresh", "rotten")]
    for split in ("train", "validation"):
        (tmp_path / "other" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--recipe", "float32", "--trim_vocabulary", "true", "--score", "true", "--text_columns", "sentence"]
    flags += ["--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--dataset", str(tmp_path / "other")]
    assert main(["compress", *flags]) == 0
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["metrics"] == scores(tmp_path / "small", data_flags)


def test_compress_trains_on_with_the_rounding_as_the_run_did(run, tmp_path, data_flags, teacher_dir):
    flags = ["--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat2"]
    assert main(["compress", *flags, "--quantize_group_size", "8"]) == 0
    record, results = (
        json.loads((tmp_path / "small" / name).read_text()) for name in ("compression.json", "results.json")
    )
    assert (record["recipe"], record["weights"]) == ("qat2", results["quantization"])
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(tmp_path / "small", data_flags) == results["metrics"]
    # the same as its own command
    base = [*data_flags, *DISTILL[2:], "--num_train_epochs", "1", "--teacher", str(teacher_dir)]
    base += ["--student_name_or_path", str(run()), "--quantize", "int2", "--quantize_group_size", "8"]
    base += ["--teacher_cache", str(tmp_path / "cache")]
    assert main(["distill", *base, "--output_dir", str(tmp_path / "again")]) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "small")


@pytest.fixture(scope="module")
def trimmed(run, tmp_path_factory, data_flags):
    folder = tmp_path_factory.mktemp("trimmed") / "run"
    trim = ["--recipe", "float32", "--trim_vocabulary", "true", "--score", "true", *data_flags[:4]]
    assert main(["compress", "--model_dir", str(run()), "--output_dir", str(folder), *trim]) == 0
    return folder


def test_a_student_with_fewer_tokens_than_its_teacher_trains_on(trimmed, tmp_path, data_flags, teacher_dir):
    small = tmp_path / "small"
    assert main(["compress", "--model_dir", str(trimmed), "--output_dir", str(small), "--recipe", "qat4"]) == 0
    tokens = [len(load(folder).get_input_embeddings().weight) for folder in (teacher_dir, trimmed)]
    assert tokens[0] > tokens[1]
    assert packed_modules(load(small))["bert.embeddings.word_embeddings"].num_embeddings == tokens[1]
    assert scores(small, data_flags)["validation"]["accuracy"] >= 0.9
    assert not (tmp_path / "small-stages").exists()


@pytest.mark.parametrize("more", [["--recipe", "pq", "--score", "true"], ["--recipe", "qat4"]], ids=["pq", "qat4"])
def test_the_second_of_two_compressions_says_what_the_first_has_done(trimmed, tmp_path, more):
    small = tmp_path / "small"
    assert main(["compress", "--model_dir", str(trimmed), "--output_dir", str(small), *more]) == 0
    records = [json.loads((small / name).read_text()) for name in ("compression.json", "results.json")]
    records[1] = records[1]["compression"]
    first = json.loads((trimmed / "compression.json").read_text())
    for record in records:
        assert (record["recipe"], record["vocabulary"]) == (more[1], first["vocabulary"])
        assert len(record["weights"]["modules"]) > 6
    push = ["push", "--model_dir", str(small), "--repo_id", "me/small", "--dry_run", "true"]
    assert main(push) == 0


def test_compress_removes_only_what_it_put_there(run, tmp_path, capsys):
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    stages = tmp_path / "small-stages"
    for mine in ("notes.txt", "1/notes.txt", "data/notes.txt"):
        (stages / mine).parent.mkdir(parents=True, exist_ok=True)
        (stages / mine).write_text("mine")
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert f"holds {mine.split('/')[0]!r}, which is of none" in error
        assert "choose another output_dir" in error
        assert (stages / mine).read_text() == "mine"
        shutil.rmtree(stages)
    stages.write_text("mine")
    assert main(flags) == 2
    assert "is a file" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_what_comes_in_while_compress_trains_stays(run, tmp_path, monkeypatch):
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    stages = tmp_path / "small-stages"

    def disturbed(settings):
        results = distill(settings)
        (stages / "notes.txt").write_text("mine")
        return results

    monkeypatch.setattr(compressed_training, "distill", disturbed)
    assert main(flags) == 0
    assert [path.name for path in stages.iterdir()] == ["notes.txt"]


def test_compress_to_codebooks_layer_by_layer(run, tmp_path, data_flags, monkeypatch, capsys):
    folder, stages = tmp_path / "small", []
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(folder), "--recipe", "ipq"]
    flags += ["--noise_rate", "0.05"]

    def stopping_distill(settings):
        stages.append(settings)
        if len(stages) == 3:
            raise TrainingError("stopped")
        return distill(settings)

    monkeypatch.setattr(compressed_training, "distill", stopping_distill)
    assert main(flags) == 1
    assert not folder.exists()
    noisy, first = (load(tmp_path / "small-stages" / number) for number in "12")
    assert packed_modules(noisy) == {}
    assert sorted(packed_modules(first)) == sorted(
        fqn for fqn in candidates(load(run())) if "embeddings" in fqn or "layer.0" in fqn
    )
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert "small-stages holds trainings of a command that was interrupted; pass --resume true to go on" in error
    assert "--overwrite_output_dir" not in error
    assert main([*flags, "--resume", "true"]) == 0
    # the first one is finished already
    assert [len(settings.modules_to_not_convert or "") for settings in stages] == [0, 8, 0] * 2
    assert [settings.noise_rate for settings in stages] == [0.05, 1, 1] * 2
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(folder, data_flags) == results["metrics"]
    assert not (tmp_path / "small-stages").exists()
    # codes of the first layer and of the embeddings stay what they were
    before, after = first.state_dict(), load(folder).state_dict()
    there = [name for name in before if name.endswith(".packed")]
    assert len(there) > 6
    for name in there:
        same_codes(before[name], after[name])
    record = (folder / "compression.json").read_text()
    assert main([*flags, "--resume", "true"]) == 0
    assert (folder / "compression.json").read_text() == record
    assert main(flags) == 2
    assert capsys.readouterr().err.endswith("...); choose another folder\n")


def test_a_finished_compression_is_resumed_with_its_own_settings_only(run, teacher_dir, tmp_path, capsys, monkeypatch):
    flags = ["compress", "--model_dir", str(run()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    assert main(flags) == 0
    flags += ["--resume", "true"]
    record = (tmp_path / "small" / "compression.json").read_text()
    for other, message in [
        (["--recipe", "qat8"], "recipe is 'qat8', was 'qat4'"),
        (["--model_dir", str(teacher_dir)], f"model_dir is '{teacher_dir}', was '{run()}'"),
        (["--num_train_epochs", "2"], "num_train_epochs is 2, was 1"),
        (["--learning_rate", "1e-3"], "learning_rate is 0.001, was None"),
        (["--quantize_group_size", "8"], "quantize_group_size is 8, was None"),
        (["--modules_to_not_convert", "embeddings"], "modules_to_not_convert is ['embeddings'], was None"),
    ]:
        assert main([*flags, *other]) == 2
        assert f"cannot be resumed with other settings ({message})" in capsys.readouterr().err
    monkeypatch.chdir(run().parent)
    same = ["--model_dir", f"../{run().parent.name}/run", "--output_dir", os.path.relpath(tmp_path / "small")]
    assert main([*flags, *same, "--num_train_epochs", "1"]) == 0
    assert (tmp_path / "small" / "compression.json").read_text() == record


def test_an_interrupted_compression_goes_on_however_its_folders_are_spelled(run, tmp_path, monkeypatch):
    flags = ["compress", "--recipe", "ipq"]

    def interrupted(settings):
        distill(settings)
        raise TrainingError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(compressed_training, "distill", interrupted)
        assert main([*flags, "--model_dir", str(run()), "--output_dir", str(tmp_path / "small")]) == 1
    monkeypatch.chdir(tmp_path)
    again = ["--model_dir", os.path.relpath(run()), "--output_dir", "./small", "--resume", "true"]
    assert main([*flags, *again]) == 0


def test_compress_to_codebooks_that_train(run, tmp_path, data_flags, monkeypatch):
    folder, stages = tmp_path / "small", []
    monkeypatch.setattr(compressed_training, "distill", lambda settings: stages.append(settings) or distill(settings))
    flags = ["--recipe", "pq", "--num_train_epochs", "2", "--learning_rate", "1e-2", "--noise_rate", "0.05"]
    assert main(["compress", "--model_dir", str(run()), "--output_dir", str(folder), *flags]) == 0
    # noise at the run's own learning rate, then all layers at once
    assert [settings.noise_rate for settings in stages] == [0.05, 1]
    assert [settings.learning_rate for settings in stages] != [1e-2] * 2
    assert stages[1].learning_rate == 1e-2
    assert {settings.num_train_epochs for settings in stages} == {2}
    assert sorted(packed_modules(load(folder))) == sorted(
        fqn for fqn in candidates(load(run())) if fqn != "classifier"
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(folder, data_flags) == results["metrics"]


def same_codes(before, after):
    """Codes that say the same of which blocks are equal: centroids may stand in another order."""
    pairs = {tuple(pair) for pair in torch.stack([before.flatten(), after.flatten()], 1).tolist()}
    assert len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def test_a_fine_tuned_model_is_its_own_teacher(teacher_dir, tmp_path):
    flags = ["--model_dir", str(teacher_dir), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    assert main(["compress", *flags, "--learning_rate", "1e-3"]) == 0
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
