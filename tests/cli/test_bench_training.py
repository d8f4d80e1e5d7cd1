"""The benchmark of training: that every contender does the same work, its command line, and misuse in one line."""

import copy
import csv
import importlib.util
import json
import math
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import lma_hf.cli.distill as distill_command
from lma_hf.cli.bench_contenders import make_job, run_other, run_ours
from lma_hf.cli.bench_training import OURS, BenchConfig, main
from lma_hf.cli.parser import parse_config
from lma_hf.compare.training_contenders import CONTENDERS, PACKAGES, load_contender
from lma_hf.errors import ConfigError

ROWS, EPOCHS, RATE, DECAY, CLIP, TEMPERATURE, TASK, DISTILL = 48, 5, 2e-3, 0.2, 0.3, 3.0, 0.4, 0.8


def importable(package):
    return importlib.util.find_spec(package) is not None


CONTENDER_PARAMS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(name in PACKAGES and not importable(name), reason=f"{name} is not installed"),
            # of these packages' own code
            pytest.mark.filterwarnings("ignore" if name in PACKAGES else "error"),
        ],
    )
    for name in CONTENDERS
]


@pytest.fixture
def make_config(data_dir, teacher_dir, tmp_path):
    """One batch an epoch, so that no order of rows matters."""

    def make(**changes):
        return BenchConfig(
            **{
                "dataset": str(data_dir),
                "text_columns": ["text"],
                "max_length": 32,
                "teacher": str(teacher_dir),
                "output_dir": str(tmp_path / "bench"),
                "num_layers": 2,
                "max_train_samples": ROWS,
                "per_device_train_batch_size": ROWS,
                "num_train_epochs": EPOCHS,
                "learning_rate": RATE,
                "weight_decay": DECAY,
                "warmup_ratio": 0.3,
                "max_grad_norm": CLIP,
                "temperature": TEMPERATURE,
                "task_loss_weight": TASK,
                "distill_loss_weight": DISTILL,
            }
            | changes
        )

    return make


def train_by_hand(teacher, student, batch):
    """AdamW of Loshchilov and Hutter (2019, algorithm 2), linear schedule, losses from probabilities."""
    labels = batch.pop("labels")
    soft_targets = F.softmax(teacher(**batch).logits.detach() / TEMPERATURE, -1)
    weights = dict(student.named_parameters())
    first, second = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    warmup = math.ceil(0.3 * EPOCHS)
    for step in range(EPOCHS):
        logits = student(**batch).logits
        hard = -F.softmax(logits, -1)[torch.arange(len(labels)), labels].log().mean()
        divergence = soft_targets * (soft_targets.log() - F.softmax(logits / TEMPERATURE, -1).log())
        loss = TASK * hard + DISTILL * TEMPERATURE**2 * divergence.sum(-1).mean()
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
        rate = RATE * (step / warmup if step < warmup else (EPOCHS - step) / (EPOCHS - warmup))
        for name, weight in weights.items():
            gradient = gradients[name] * min(1, CLIP / (norm + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            moment = first[name] / (1 - 0.9 ** (step + 1))
            scale = torch.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8
            decay = 0 if name.endswith("bias") or "LayerNorm" in name else DECAY
            weight.data -= rate * (moment / scale + decay * weight.data)


@pytest.mark.parametrize("name", CONTENDER_PARAMS)
def test_contender_computes_what_is_written_down(make_config, name):
    job = make_job(make_config())
    # key biases have no gradient but rounding errors, of which Adam makes steps; float64 keeps them below its epsilon
    job.teacher.double(), job.student.double()
    start = {key: value.clone() for key, value in job.student.state_dict().items()}
    by_hand = copy.deepcopy(job.student)
    train_by_hand(job.teacher, by_hand.train(), job.tokenizer.pad(job.rows[:], return_tensors="pt"))
    load_contender(name)(job)
    for key, expected in by_hand.state_dict().items():
        torch.testing.assert_close(job.student.state_dict()[key], expected, atol=1e-7, rtol=1e-7)
    changes = [(start[key] - value).abs().max() for key, value in by_hand.state_dict().items()]
    assert max(changes) > 1e-3
    seconds, scores = zip(*job.clock.epochs, strict=True)
    assert len(seconds) == EPOCHS
    assert list(seconds) == sorted(seconds)
    assert scores[-1] == job.clock.evaluate(by_hand)


def test_ours_has_the_same_scores_after_every_epoch(make_config, tmp_path):
    config = make_config()
    others = run_other("plain", config)
    cached = make_config(teacher_cache=str(tmp_path / "cache"))
    for options in ((), ("teacher_cache",), ("teacher_cache",)):
        ours = run_ours(cached, options)
        assert ours["epoch_scores"] == others["epoch_scores"]
        assert ours["examples_per_second"] == pytest.approx(ROWS * EPOCHS / ours["train_seconds"])


def test_time_for_the_cache_is_time_of_training(make_config, tmp_path, monkeypatch):
    answering = distill_command.answering

    def slow(*arguments):
        time.sleep(0.5)
        return answering(*arguments)

    monkeypatch.setattr(distill_command, "answering", slow)
    figures = run_ours(make_config(num_train_epochs=1, teacher_cache=str(tmp_path / "cache")), ("teacher_cache",))
    assert figures["train_seconds"] == figures["epoch_seconds"][0] > 0.5


@pytest.mark.parametrize("name", CONTENDER_PARAMS)
def test_bf16_is_the_precision_of_teacher_and_student(make_config, name):
    job = make_job(make_config(mixed_precision="bf16", num_train_epochs=1))
    seen = {}
    for role, model in (("teacher", job.teacher), ("student", job.student)):
        dense = model.bert.encoder.layer[0].output.dense
        seen[role] = dtypes = set()
        dense.register_forward_hook(lambda module, inputs, output, dtypes=dtypes: dtypes.add(output.dtype))
    load_contender(name)(job)
    assert seen == {"teacher": {torch.bfloat16}, "student": {torch.bfloat16}}
    assert job.student.dtype == torch.float32


def flags_of(config):
    flags = ["--dataset", config.dataset, "--text_columns", "text", "--teacher", config.teacher, "--num_layers", "2"]
    flags += ["--output_dir", config.output_dir, "--max_train_samples", "40", "--num_train_epochs", "2"]
    return [*flags, "--max_length", "32"]


def test_one_run_prints_its_figures(make_config, capsys):
    assert main([*flags_of(make_config()), "--only", "plain"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["examples_per_second"] == pytest.approx(80 / figures["train_seconds"])
    assert figures["seconds"] > figures["train_seconds"] > 0
    assert figures["peak_memory_mb"] > 100
    assert len(figures["epoch_scores"]) == len(figures["epoch_seconds"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTENDER_PARAMS)
def test_contenders_take_turns(make_config, capsys, tmp_path, name):
    config = make_config()
    flags = [*flags_of(config), "--rounds", "2", "--contenders", name, "warm"]
    assert main(flags) == 0
    table = (tmp_path / "bench" / "table.md").read_text()
    assert capsys.readouterr().out == table
    assert [line.split()[1] for line in table.splitlines()[2:]] == [name, "warm"]
    with open(tmp_path / "bench" / "runs.csv", newline="", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [(run["round"], run["contender"]) for run in runs] == [(n, c) for n in "01" for c in (name, "warm")]
    versions = json.loads((tmp_path / "bench" / "environment.json").read_text())["contenders"]
    assert set(versions) == {name} & set(PACKAGES)
    assert main(flags) == 2  # holds another run
    record = [str(tmp_path / "bench" / "run_config.yaml")]
    told, kept = (parse_config(BenchConfig, argv, prog="", description="") for argv in (flags, record))
    assert told == kept


MISUSE = {
    "--contenders plain distilbox": "contenders names 'distilbox', allowed are plain, grouped, textbrewer, torchd",
    "--activation lma": "activation names 'lma', allowed are gelu, relu",
    "--freeze_embeddings true": "freeze_embeddings is True, but not every contender can do that",
    "--gradient_accumulation_steps 2": "gradient_accumulation_steps is 2, but not every contender",
    "--mixed_precision fp16": "mixed_precision is 'fp16', but not every contender",
    "--teacher_cache some": "teacher_cache is 'some', but every round has its own folder",
    "--rounds 0": "rounds is 0, allowed are numbers above 0",
    "--is_regression true": "is_regression is True, but not every contender",
}


@pytest.mark.parametrize("flags", MISUSE)
def test_misuse_is_one_line(make_config, capsys, flags):
    assert main([*flags_of(make_config()), *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench_training.py: error: ")
    assert MISUSE[flags] in line


def test_regression_is_misuse(make_config):
    with pytest.raises(ConfigError, match="'stsb', a regression"):
        make_config(task_name="stsb", text_columns=None)


@pytest.mark.parametrize("name", PACKAGES)
def test_missing_package_is_named_before_any_run(make_config, capsys, monkeypatch, tmp_path, name):
    for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"lma_hf.compare.training_contenders.{name}", raising=False)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert main([*flags_of(make_config()), "--contenders", "plain", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"contender {name} cannot be imported" in line
    assert f"pip install {name}" in line
    assert not (tmp_path / "bench").exists()


def test_failed_run_is_exit_1(make_config, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main([*flags_of(make_config()), "--contenders", "plain"]) == 1
    assert "contender plain failed in round 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", OURS)
def test_every_contender_of_ours_runs(make_config, tmp_path, name):
    config = make_config(num_train_epochs=1, teacher_cache=str(tmp_path / "cache"), tokens_per_batch=256)
    assert run_ours(config, OURS[name])["score"] > 0
