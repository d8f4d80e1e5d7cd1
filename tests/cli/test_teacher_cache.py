"""`--teacher_cache` and `--tokens_per_batch` end to end: same training, other keys, nothing recomputed."""

import json
import logging
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import lma_hf.cli.distill as distill_command
from lma_hf.cli.__main__ import main
from lma_hf.distillation.teacher import CachedTeacher, Teacher

STEPS = ["--num_layers", "2", "--learning_rate", "1e-3", "--per_device_train_batch_size", "16"]
STEPS += ["--max_steps", "4", "--eval_steps", "4", "--calibration_batches", "2", "--logging_steps", "1"]


@pytest.fixture
def distill(tmp_path, data_flags, teacher_dir):
    def run(name, *flags, code=0):
        folder = tmp_path / name
        command = ["distill", *data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folder), *STEPS, *flags]
        assert main(command) == code
        if code == 0:
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            losses = [line["loss"] for line in lines if "loss" in line]
            return json.loads((folder / "results.json").read_text()), losses

    return run


@pytest.fixture
def no_teacher(monkeypatch):
    """Any answer of a live teacher fails."""

    def refuse(self, batch, hidden_states=False):
        raise AssertionError("the teacher was run")

    return lambda: monkeypatch.setattr(Teacher, "__call__", refuse)


def apart(first, second):
    """Share of all numbers in two state dicts that differ."""
    return torch.cat([((first[name] - second[name]).abs() > 1e-5).flatten() for name in first]).float().mean().item()


def keys(folder):
    return {path.name for path in folder.iterdir()}


COSINE = ["--hidden_cosine_loss_weight", "0.5", "--hidden_cosine_layers", "last", "--activation_warmup_steps", "2"]
THESEUS = ["--replacement_rate", "0.5", "--layer_map", "1", "3"]


@pytest.mark.parametrize(
    "flags", [[], ["--hidden_loss_weight", "0.5"], ["--tokens_per_batch", "512"], COSINE, THESEUS], ids=str
)
def test_training_is_that_with_the_live_teacher(tmp_path, distill, no_teacher, flags):
    live, live_losses = distill("live", *flags)
    cache = ["--teacher_cache", str(tmp_path / "cache"), *flags]
    first, first_losses = distill("first", *cache)
    no_teacher()
    warm, warm_losses = distill("warm", *cache, "--activation", "lma")
    # hidden states are kept in half precision
    tolerance = 1e-3 if any(flag.startswith("--hidden") for flag in flags) else 1e-6
    assert live_losses[0] == pytest.approx(first_losses[0], rel=tolerance)
    assert live_losses == pytest.approx(first_losses, rel=10 * tolerance)
    assert first_losses == warm_losses
    assert live["metrics"] == first["metrics"] == warm["metrics"]
    assert live["teacher"]["metrics"] == first["teacher"]["metrics"]
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("first", "warm")}
    assert all(torch.equal(weights["first"][name], weights["warm"][name]) for name in weights["warm"])
    assert len(keys(tmp_path / "cache")) == 2


def test_seeds_and_activations_share_a_cache_and_what_changes_answers_does_not(tmp_path, distill):
    flags = ["--teacher_cache", str(tmp_path / "cache"), "--max_steps", "1", "--eval_steps", "1"]
    distill("first", *flags)
    known = keys(tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "__call__", None)
        distill("seed", *flags, "--seed", "7")
        distill("activation", *flags, "--activation", "gelu")
        distill("depth", *flags, "--num_layers", "3")
        distill("batches", *flags, "--tokens_per_batch", "512")
    assert keys(tmp_path / "cache") == known
    for name, change in {
        "length": ["--max_length", "16"],
        "rows": ["--max_train_samples", "300", "--max_eval_samples", "50"],
        "precision": ["--mixed_precision", "bf16"],
    }.items():
        distill(name, *flags, *change)
        assert len(keys(tmp_path / "cache") - known) == 2, name
        known = keys(tmp_path / "cache")
    # hidden states: another cache for the training rows; the validation rows' logits are there
    distill("states", *flags, "--hidden_loss_weight", "1")
    assert len(keys(tmp_path / "cache") - known) == 1


def test_another_teacher_tokenizer_or_text_makes_another_cache(tmp_path, distill, teacher_dir, data_dir):
    flags = ["--teacher_cache", str(tmp_path / "cache"), "--max_steps", "1", "--eval_steps", "1"]
    distill("first", *flags)
    known = keys(tmp_path / "cache")
    for name in ("weights", "config", "tokenizer", "text"):
        source = shutil.copytree(data_dir if name == "text" else teacher_dir, tmp_path / f"other-{name}")
        if name == "weights":
            weights = load_file(source / "model.safetensors")
            weights["classifier.bias"] += 1e-6
            save_file(weights, source / "model.safetensors", {"format": "pt"})
        elif name == "config":
            replace_in(source / "config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-6')
        elif name == "tokenizer":
            tokenizer = AutoTokenizer.from_pretrained(source)
            tokenizer.add_tokens(["zyx"])
            tokenizer.save_pretrained(source)
        else:
            replace_in(source / "train.jsonl", "a film", "the film")
        distill(name, *flags, "--dataset" if name == "text" else "--teacher", str(source))
        # the validation texts stay the same
        assert len(keys(tmp_path / "cache") - known) == (1 if name == "text" else 2), name
        known = keys(tmp_path / "cache")


def replace_in(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_damaged_cache_is_repaired_and_says_so(tmp_path, distill, caplog):
    flags = ["--teacher_cache", str(tmp_path / "cache")]
    _, losses = distill("first", *flags)
    for path in (tmp_path / "cache").glob("*/logits.f32"):
        path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        _, again = distill("again", *flags)
    assert caplog.text.count("1 chunks are damaged, computing them again") == 2
    assert again == losses


def test_teacher_is_out_of_memory_while_the_student_trains(tmp_path, distill, monkeypatch):
    teachers, alive = [], []
    make_student, answer = distill_command.make_student, CachedTeacher.__call__

    def make(teacher, *arguments):
        teachers.append(weakref.ref(teacher))
        return make_student(teacher, *arguments)

    def look(self, batch, hidden_states=False):
        alive.append(teachers[0]() is not None)
        return answer(self, batch, hidden_states)

    monkeypatch.setattr(distill_command, "make_student", make)
    monkeypatch.setattr(CachedTeacher, "__call__", look)
    distill("student", "--teacher_cache", str(tmp_path / "cache"))
    assert alive == [False] * 4


def test_several_teachers_answer_from_the_cache(tmp_path, distill, no_teacher, teacher_dir):
    other = shutil.copytree(teacher_dir, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["classifier.weight"] *= 3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    flags = ["--extra_teachers", str(other)]
    live, live_losses = distill("live", *flags)
    flags += ["--teacher_cache", str(tmp_path / "cache")]
    distill("first", *flags)
    no_teacher()
    warm, losses = distill("warm", *flags)
    assert losses == pytest.approx(live_losses, rel=1e-5)
    assert warm["extra_teachers"] == live["extra_teachers"]
    assert len(keys(tmp_path / "cache")) == 4


@pytest.mark.parametrize("loss", ["attention", "relation"])
def test_losses_that_look_into_the_teacher_are_refused(tmp_path, distill, capsys, loss):
    distill("student", "--teacher_cache", str(tmp_path / "cache"), f"--{loss}_loss_weight", "1", code=2)
    assert f"{loss}_loss_weight looks into the teacher; drop one of them" in capsys.readouterr().err


def test_cache_in_the_folder_that_the_run_empties_is_refused(tmp_path, distill, capsys):
    cache = tmp_path / "student" / "cache"
    distill("student", "--teacher_cache", str(cache), code=2)
    assert f"teacher_cache {cache} lies in output_dir {tmp_path / 'student'}" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_unusable_folder_is_one_line(tmp_path, distill, capsys):
    (tmp_path / "file").write_text("")
    distill("student", "--teacher_cache", str(tmp_path / "file"), code=1)
    assert "teacher_cache" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


@pytest.mark.extended
def test_two_processes_share_the_work_and_train_as_one(tmp_path, data_flags, teacher_dir, distill):
    flags = ["--learning_rate", "5e-5", "--tokens_per_batch", "512"]
    one, _ = distill("one", *flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "lma_hf.cli", "distill", *data_flags, "--teacher", str(teacher_dir), *STEPS, *flags]
    launch += ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "8"]
    launch += ["--tokens_per_batch", "256", "--teacher_cache", str(tmp_path / "cache")]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["num_processes"] == 2
    assert two["metrics"] == one["metrics"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    # see test_two_processes: AdamW steps by the sign of a gradient that is rounding alone
    assert apart(*weights) < 0.005
