"""Recipes of `compress` that train: what they go on from, what they leave, and what they resume."""

import json
import os
import shutil

import pytest
import torch
from cli.students import DISTILL, load, losses, scores

from lma_hf.cli import compressed_training
from lma_hf.cli.__main__ import main
from lma_hf.cli.distill import distill
from lma_hf.compression.quantization.targets import candidates
from lma_hf.errors import TrainingError
from lma_hf.modeling.quantizer_lma import packed_modules


def test_compress_trains_on_with_the_rounding_as_the_run_did(distilled, tmp_path, data_flags, teacher_dir):
    flags = ["--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat2"]
    assert main(["compress", *flags, "--quantize_group_size", "8"]) == 0
    record, results = (
        json.loads((tmp_path / "small" / name).read_text()) for name in ("compression.json", "results.json")
    )
    assert (record["recipe"], record["weights"]) == ("qat2", results["quantization"])
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(tmp_path / "small", data_flags) == results["metrics"]
    # the same as its own command
    base = [*data_flags, *DISTILL[2:], "--num_train_epochs", "1", "--teacher", str(teacher_dir)]
    base += ["--student_name_or_path", str(distilled()), "--quantize", "int2", "--quantize_group_size", "8"]
    base += ["--teacher_cache", str(tmp_path / "cache")]
    assert main(["distill", *base, "--output_dir", str(tmp_path / "again")]) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "small")


@pytest.fixture(scope="module")
def trimmed(distilled, tmp_path_factory, data_flags):
    folder = tmp_path_factory.mktemp("trimmed") / "run"
    trim = ["--recipe", "float32", "--trim_vocabulary", "true", "--score", "true", *data_flags[:4]]
    assert main(["compress", "--model_dir", str(distilled()), "--output_dir", str(folder), *trim]) == 0
    return folder


def test_a_student_with_fewer_tokens_than_its_teacher_trains_on(trimmed, tmp_path, data_flags, teacher_dir):
    small = tmp_path / "small"
    assert main(["compress", "--model_dir", str(trimmed), "--output_dir", str(small), "--recipe", "qat4"]) == 0
    tokens = [len(load(folder).get_input_embeddings().weight) for folder in (teacher_dir, trimmed)]
    assert tokens[0] > tokens[1]
    assert packed_modules(load(small))["bert.embeddings.word_embeddings"].num_embeddings == tokens[1]
    assert scores(small, data_flags)["validation"]["accuracy"] >= 0.9
    assert not (tmp_path / "small-stages").exists()


@pytest.mark.extended
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


def test_compress_removes_only_what_it_put_there(distilled, tmp_path, capsys):
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
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


def test_what_comes_in_while_compress_trains_stays(distilled, tmp_path, monkeypatch):
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    stages = tmp_path / "small-stages"

    def disturbed(settings):
        results = distill(settings)
        (stages / "notes.txt").write_text("mine")
        return results

    monkeypatch.setattr(compressed_training, "distill", disturbed)
    assert main(flags) == 0
    assert [path.name for path in stages.iterdir()] == ["notes.txt"]


def test_compress_to_codebooks_layer_by_layer(distilled, tmp_path, data_flags, monkeypatch, capsys):
    folder, stages = tmp_path / "small", []
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(folder), "--recipe", "ipq"]
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
        fqn for fqn in candidates(load(distilled())) if "embeddings" in fqn or "layer.0" in fqn
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


def test_a_finished_compression_is_resumed_with_its_own_settings_only(
    distilled, teacher_dir, tmp_path, capsys, monkeypatch
):
    flags = ["compress", "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small"), "--recipe", "qat4"]
    assert main(flags) == 0
    flags += ["--resume", "true"]
    record = (tmp_path / "small" / "compression.json").read_text()
    for other, message in [
        (["--recipe", "qat8"], "recipe is 'qat8', was 'qat4'"),
        (["--model_dir", str(teacher_dir)], f"model_dir is '{teacher_dir}', was '{distilled()}'"),
        (["--num_train_epochs", "2"], "num_train_epochs is 2, was 1"),
        (["--learning_rate", "1e-3"], "learning_rate is 0.001, was None"),
        (["--quantize_group_size", "8"], "quantize_group_size is 8, was None"),
        (["--modules_to_not_convert", "embeddings"], "modules_to_not_convert is ['embeddings'], was None"),
    ]:
        assert main([*flags, *other]) == 2
        assert f"cannot be resumed with other settings ({message})" in capsys.readouterr().err
    monkeypatch.chdir(distilled().parent)
    same = ["--model_dir", f"../{distilled().parent.name}/run", "--output_dir", os.path.relpath(tmp_path / "small")]
    assert main([*flags, *same, "--num_train_epochs", "1"]) == 0
    assert (tmp_path / "small" / "compression.json").read_text() == record


def test_an_interrupted_compression_goes_on_however_its_folders_are_spelled(distilled, tmp_path, monkeypatch):
    flags = ["compress", "--recipe", "ipq"]

    def interrupted(settings):
        distill(settings)
        raise TrainingError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(compressed_training, "distill", interrupted)
        assert main([*flags, "--model_dir", str(distilled()), "--output_dir", str(tmp_path / "small")]) == 1
    monkeypatch.chdir(tmp_path)
    again = ["--model_dir", os.path.relpath(distilled()), "--output_dir", "./small", "--resume", "true"]
    assert main([*flags, *again]) == 0


def test_compress_to_codebooks_that_train(distilled, tmp_path, data_flags, monkeypatch):
    folder, stages = tmp_path / "small", []
    monkeypatch.setattr(compressed_training, "distill", lambda settings: stages.append(settings) or distill(settings))
    flags = ["--recipe", "pq", "--num_train_epochs", "2", "--learning_rate", "1e-2", "--noise_rate", "0.05"]
    assert main(["compress", "--model_dir", str(distilled()), "--output_dir", str(folder), *flags]) == 0
    # noise at the run's own learning rate, then all layers at once
    assert [settings.noise_rate for settings in stages] == [0.05, 1]
    assert [settings.learning_rate for settings in stages] != [1e-2] * 2
    assert stages[1].learning_rate == 1e-2
    assert {settings.num_train_epochs for settings in stages} == {2}
    assert sorted(packed_modules(load(folder))) == sorted(
        fqn for fqn in candidates(load(distilled())) if fqn != "classifier"
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
