"""A run that is interrupted anywhere and resumed ends with the bits of one that was not."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from helpers import VOCAB, tiny_config, tiny_model
from torch.utils.data import DataLoader

from lma_hf import LMAConfig, swap_activations_
from lma_hf.distillation.objective import DistillationObjective, TaskObjective
from lma_hf.distillation.teacher import Teacher
from lma_hf.errors import TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.config import TeachConfig
from lma_hf.training.trainer import Trainer

ROWS = 26  # 7 batches of 4, the last one shorter
TIMES = {"examples_per_second", "train_seconds"}


class Stop(Exception):
    """The process is killed."""


def rows():
    ids = torch.randint(5, VOCAB, (ROWS, 6), generator=torch.Generator().manual_seed(3))
    labels = (ids[:, 1] >= VOCAB // 2).long()
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels, strict=True)
    ]


def make_trainer(tmp_path, *, settings, hidden, stop_at=None, every=1, **values):
    """(Trainer, its lines); the trainer saves its state every `every` steps and is killed after step `stop_at`."""
    set_seed(5)
    defaults = {"learning_rate": 1e-2, "activation_learning_rate": 1e-2, "num_train_epochs": 3, "logging_steps": 3}
    config = TeachConfig(task_name="sst2", output_dir="unused", model_name_or_path="unused", **defaults | values)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.gradient_accumulation_steps)
    model = tiny_model(config=tiny_config("bert", 2, hidden_dropout_prob=0.2))
    objective = TaskObjective()
    if settings is not None:
        swap_activations_(model, settings)
    if hidden:
        teacher = tiny_model(config=tiny_config("bert", 2, hidden_size=16), seed=1)
        objective = DistillationObjective(
            Teacher(teacher),
            hidden_loss_weight=1.0,
            layer_map=[0, 1],
            student_hidden_size=model.config.hidden_size,
            teacher_hidden_size=16,
        )
    lines = []

    def evaluate(model, step):
        # draws from every generator, as a loader or a user's metric may
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        lines.append({"step": step, "noise": noise})
        return lines_score(step)

    def after_step(step, make_state):
        if step % every == 0:
            torch.save({**make_state(), "lines": lines}, tmp_path / "state.pt")
        if step == stop_at:
            raise Stop

    loader = DataLoader(rows(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(9))
    trainer = Trainer(
        model,
        objective,
        loader,
        evaluate=evaluate,
        save_best=lambda: None,
        log=lambda values, step: lines.append(values),
        config=config,
        accelerator=accelerator,
        activation_parameters=activation_parameters(model),
        after_step=after_step,
    )
    return trainer, lines


def lines_score(step):
    """Scripted: falls from step 7 on, so that patience is used up at step 21 (every 7) or earlier."""
    return -abs(step - 7)


def outcome(trainer, lines):
    result = dataclasses.asdict(trainer.train())
    states = [trainer.model.state_dict(), trainer.objective.state_dict(), trainer.optimizer.state_dict()["state"]]
    clean = [{key: value for key, value in entry.items() if key not in TIMES} for entry in (result, *lines)]
    return states, clean


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0, equal_nan=True)
    assert first[1] == second[1]


LMA = {kind: LMAConfig(statistics=kind, per_channel=True) for kind in ("batch", "running", "frozen")}
CASES = {
    "plain": {"settings": None, "hidden": False},
    "batch": {"settings": LMA["batch"], "hidden": False, "lr_scheduler_type": "cosine"},
    "running": {"settings": LMA["running"], "hidden": True, "gradient_accumulation_steps": 2},
    "checkpointing": {"settings": LMA["running"], "hidden": False, "gradient_checkpointing": True},
    "frozen": {"settings": LMA["frozen"], "hidden": True, "eval_steps": 5},
    "patience": {"settings": LMAConfig(continuous=True), "hidden": False, "early_stopping_patience": 2},
    "skip": {"settings": LMA["running"], "hidden": False, "on_nan": "skip", "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, case):
    values = CASES[case]
    expected = outcome(*make_trainer(tmp_path, every=100, **values))
    last = expected[1][0]["num_steps"]
    # the first step, within an epoch, where an evaluation is due, right after it, the last one
    for stop_at in sorted({1, 4, 7, 8, last} & set(range(last + 1))):
        trainer, _ = make_trainer(tmp_path, stop_at=stop_at, **values)
        with pytest.raises(Stop):
            trainer.train()
        resumed, lines = make_trainer(tmp_path, every=100, **values)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        lines += state.pop("lines")
        resumed.load_state_dict(state)
        assert_same(outcome(resumed, lines), expected)


def test_two_interruptions_and_an_older_state(tmp_path):
    values = CASES["running"]
    expected = outcome(*make_trainer(tmp_path, every=100, **values))
    state = None
    # killed at step 5 with the state of step 4, then at 9 with that of 6, with draws from elsewhere in between
    for stop_at, every in ((5, 4), (9, 3), (None, 100)):
        trainer, lines = make_trainer(tmp_path, stop_at=stop_at, every=every, **values)
        if state is not None:
            torch.rand(7), np.random.rand(), random.random()
            lines += state.pop("lines")
            trainer.load_state_dict(state)
        if stop_at is not None:
            with pytest.raises(Stop):
                trainer.train()
            state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert_same(outcome(trainer, lines), expected)


def test_state_that_is_not_finite_is_no_checkpoint(tmp_path):
    trainer, _ = make_trainer(tmp_path, settings=None, hidden=False, logging_steps=100)
    forward = trainer.objective.forward

    def broken(model, batch):
        parts = forward(model, batch)
        return {"loss": parts["loss"] * (torch.nan if trainer.step == 2 else 1)}

    trainer.objective.forward = broken
    with pytest.raises(TrainingError, match=r"not finite at step 3 of 21.*--on_nan skip; no model was saved"):
        trainer.train()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["counters"]["step"] == 2
