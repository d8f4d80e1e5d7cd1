import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from helpers import HEADS, VOCAB, NoTokenizer, tiny_config, tiny_model
from torch import nn
from torch.utils.data import DataLoader

from lma_hf import LMAConfig, build_student, calibrate_, swap_activations_
from lma_hf.distillation.objective import DistillationObjective, TaskObjective
from lma_hf.distillation.teacher import Teacher
from lma_hf.errors import TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.checkpoint import save_model
from lma_hf.training.config import TeachConfig
from lma_hf.training.prediction import predict
from lma_hf.training.trainer import Trainer

ROWS = 32


class Records:
    """Stands in for the run around a Trainer: scripted scores, and what was called when."""

    def __init__(self, scores=()):
        self.scores, self.evaluated, self.lines, self.saved = list(scores), [], [], 0

    def evaluate(self, model, step):
        self.evaluated.append(step)
        return self.scores[len(self.evaluated) - 1] if self.scores else float(step)

    def save_best(self):
        self.saved += 1

    def log(self, values, step):
        self.lines.append(values)


def rows(count=ROWS, seed=0):
    """Sentences of 6 tokens with label 1 where the second token is in the upper half of the vocabulary."""
    ids = torch.randint(5, VOCAB, (count, 6), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    labels = (ids[:, 1] >= VOCAB // 2).long()
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels, strict=True)
    ]


def train(model, records, *, objective=None, batch_size=8, count=ROWS, shuffle=False, save_best=None, **values):
    """(TrainResult, Trainer) of a run over `rows`; unless `values` say otherwise, one epoch with a log line a step."""
    defaults = {"learning_rate": 1e-3, "warmup_ratio": 0.0, "num_train_epochs": 1, "logging_steps": 1}
    config = TeachConfig(task_name="sst2", output_dir="unused", model_name_or_path="unused", **{**defaults, **values})
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.gradient_accumulation_steps)
    trainer = Trainer(
        model,
        objective or TaskObjective(),
        DataLoader(rows(count), batch_size=batch_size, shuffle=shuffle),
        evaluate=records.evaluate,
        save_best=save_best or records.save_best,
        log=records.log,
        config=config,
        accelerator=accelerator,
        activation_parameters=activation_parameters(model),
    )
    return trainer.train(), trainer


def lma_student():
    """(teacher, LMA student) in float64, so that Adam does not blow rounding up."""
    teacher = tiny_model(config=tiny_config("bert", 2))
    student = build_student(teacher, 2, activation=LMAConfig(statistics="frozen", init="fit", per_channel=True))
    calibrate_(student, DataLoader(rows(), batch_size=ROWS))
    return teacher.double(), student.double()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("count", [32, 20])
def test_accumulated_batches_are_one_large_batch(count, max_grad_norm):
    """8 x 1 = 2 x 4, with and without a last, shorter step.

    Only with frozen statistics: batch statistics are those of the 2 rows, and running ones move once a batch.
    """
    states = []
    for batch_size, accumulated in ((8, 1), (2, 4)):
        teacher, student = lma_student()
        objective = DistillationObjective(Teacher(teacher), hidden_loss_weight=1.0, layer_map=[0, 1])
        records = Records()
        result, _ = train(
            student,
            records,
            objective=objective,
            batch_size=batch_size,
            count=count,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=2,
            # 0.5 is tight enough to act: clipping sees the whole step's gradient
            max_grad_norm=max_grad_norm,
        )
        assert result.num_steps == 2 * math.ceil(count / 8)
        states.append((student.state_dict(), records))
    (large, large_records), (small, small_records) = states
    start = lma_student()[1].state_dict()
    assert (large["classifier.weight"] - start["classifier.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(small, large, rtol=0, atol=1e-6)
    assert small_records.evaluated == large_records.evaluated
    assert [line["learning_rate"] for line in small_records.lines] == [
        line["learning_rate"] for line in large_records.lines
    ]


def test_separable_data_is_learned_and_activations_move():
    set_seed(0)
    model = tiny_model(config=tiny_config("bert", 1), scale=1.0)
    swap_activations_(model, LMAConfig(statistics="running"))
    before = [parameter.detach().clone() for parameter in activation_parameters(model)]
    records = Records()
    train(model, records, num_train_epochs=40, learning_rate=1e-2, activation_learning_rate=1e-2, shuffle=True)
    logits, labels = predict(model.train(), DataLoader(rows(), batch_size=5), Accelerator(cpu=True))
    assert model.training
    assert (logits.argmax(-1) == labels).all()
    assert logits.shape == (ROWS, 2)
    assert records.lines[-1]["loss"] < 0.1 * records.lines[0]["loss"]
    assert all(not torch.equal(now, then) for now, then in zip(activation_parameters(model), before, strict=True))


def test_best_model_is_kept_not_the_last(tmp_path):
    model = tiny_model(config=tiny_config("bert", 1))
    states = []

    def save():
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        save_model(model, NoTokenizer(), tmp_path)

    records = Records([0.2, 0.9, 0.9, 0.5])
    result, _ = train(model, records, num_train_epochs=4, save_best=save)
    assert (result.best_score, result.best_step, result.num_steps) == (0.9, 8, 16)
    assert len(states) == 2
    saved = HEADS["classification"].from_pretrained(tmp_path).state_dict()
    torch.testing.assert_close(saved, states[-1], rtol=0, atol=0)
    assert not torch.equal(saved["classifier.weight"], model.classifier.weight)


@pytest.mark.parametrize(("patience", "stops_at"), [(1, 12), (2, 24), (None, 40)])
def test_early_stopping(patience, stops_at):
    records = Records([1, 2, 2, 3, 1, 0, 9, 0, 0, 0])
    model = tiny_model(config=tiny_config("bert", 1))
    result, _ = train(model, records, num_train_epochs=10, early_stopping_patience=patience)
    # 4 steps an epoch; the third score is no gain, nor are the fifth and sixth
    assert result.num_steps == stops_at
    assert records.evaluated[-1] == stops_at


@pytest.mark.parametrize(
    ("values", "steps", "evaluated"),
    [
        ({"num_train_epochs": 3}, 12, [4, 8, 12]),
        ({"num_train_epochs": 2, "eval_steps": 3}, 8, [3, 6, 8]),
        ({"max_steps": 6}, 6, [4, 6]),
        ({"max_steps": 2, "num_train_epochs": 9}, 2, [2]),
        ({"max_steps": 10, "num_train_epochs": 1, "eval_steps": 5}, 10, [5, 10]),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 3}, 4, [2, 4]),
    ],
    ids=str,
)
def test_steps_and_evaluations(values, steps, evaluated):
    records = Records()
    result, trainer = train(tiny_model(config=tiny_config("bert", 1)), records, **values)
    assert (result.num_steps, records.evaluated) == (steps, evaluated)
    assert records.saved == len(evaluated)
    assert [line["step"] for line in records.lines] == list(range(1, steps + 1))
    # the schedule ends with the last step, whatever ended the run
    assert trainer.scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_learning_rate_goes_down_once_a_step(kind):
    model, records = tiny_model(config=tiny_config("bert", 1)), Records()
    train(model, records, batch_size=2, gradient_accumulation_steps=2, lr_scheduler_type=kind)
    left = [1 - step / 8 for step in range(1, 9)]
    shares = left if kind == "linear" else [0.5 - 0.5 * math.cos(math.pi * share) for share in left]
    assert [line["learning_rate"] for line in records.lines] == pytest.approx([1e-3 * s for s in shares], abs=1e-12)


def test_log_lines_are_means_since_the_last():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = iter([1.0, 3.0, 5.0, 9.0])

        def forward(self, model, batch):
            zero = 0 * model(input_ids=batch["input_ids"]).logits.sum()
            return {"loss": zero + next(self.values), "part": zero.detach() + 2}

    records = Records()
    train(tiny_model(config=tiny_config("bert", 1)), records, objective=Scripted(), logging_steps=2)
    assert [(line["step"], line["epoch"], line["loss"], line["part"]) for line in records.lines] == [
        (2, 0.5, 2.0, 2.0),
        (4, 1.0, 7.0, 2.0),
    ]
    assert all(line["examples_per_second"] > 0 for line in records.lines)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("logging_steps", "noticed"), [(1, 6), (20, 8)])
def test_loss_that_is_not_finite_ends_the_run_before_it_is_saved(bad, logging_steps, noticed):
    class Breaks(TaskObjective):
        calls = 0

        def forward(self, model, batch):
            self.calls += 1
            return {"loss": super().forward(model, batch)["loss"] * (bad if self.calls == 6 else 1)}

    records = Records()
    model = tiny_model(config=tiny_config("bert", 1))
    with pytest.raises(TrainingError, match=rf"at step {noticed} of 16.*best model so far is from step 4"):
        train(model, records, objective=Breaks(), num_train_epochs=4, logging_steps=logging_steps)
    assert records.evaluated == [4]


def test_same_seed_same_weights():
    states = []
    for seed in (1, 1, 2):
        set_seed(seed)
        config = tiny_config("bert", 2, hidden_dropout_prob=0.3)
        model = HEADS["classification"].from_config(config)
        swap_activations_(model)
        train(model, Records(), num_train_epochs=2, shuffle=True, eval_steps=3)
        states.append(model.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    assert not torch.equal(states[2]["classifier.weight"], states[0]["classifier.weight"])


@pytest.mark.parametrize("projections", [0, 1])
def test_gradients_are_clipped_with_fsdp(monkeypatch, projections):
    objective = TaskObjective()
    objective.projections = nn.ModuleList(nn.Linear(2, 2) for _ in range(projections))
    model = tiny_model(config=tiny_config("bert", 1))
    _, trainer = train(model, Records(), objective=objective, max_steps=1, max_grad_norm=0.5)
    trained = [*model.parameters(), *objective.parameters()]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    trainer._clip_gradients()
    norm = torch.cat([parameter.grad.flatten() for parameter in trained]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)


def test_evaluation_mode_does_not_leak_into_training():
    modes = []

    class Watching(TaskObjective):
        def forward(self, model, batch):
            modes.append(model.training)
            return super().forward(model, batch)

    records = Records()
    records.evaluate = lambda model, step: float(model.eval().training)
    train(tiny_model(config=tiny_config("bert", 1)), records, objective=Watching(), eval_steps=1, num_train_epochs=2)
    assert modes == [True] * 8


def test_objective_is_told_the_progress_of_the_run():
    seen = []

    class Watching(TaskObjective):
        def forward(self, model, batch):
            seen.append(self.progress)
            return super().forward(model, batch)

    model = tiny_model(config=tiny_config("bert", 1))
    train(model, Records(), objective=Watching(), batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2)
    # 8 steps of two batches each
    assert seen == [step / 8 for step in range(8) for _ in range(2)]
