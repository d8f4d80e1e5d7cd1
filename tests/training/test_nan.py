"""A step without finite loss and gradients: it stops the run or is left out as if it had not been."""

import math

import pytest
import torch
from accelerate import Accelerator
from helpers import VOCAB, tiny_config, tiny_model
from torch.utils.data import DataLoader

from lma_hf import LMAConfig, swap_activations_
from lma_hf.distillation.objective import TaskObjective
from lma_hf.errors import TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.config import TeachConfig
from lma_hf.training.optimizer import build_optimizer, build_scheduler
from lma_hf.training.trainer import Trainer

STEPS = 6


def rows(count):
    ids = torch.randint(5, VOCAB, (count, 6), generator=torch.Generator().manual_seed(3))
    mask, labels = torch.ones(6, dtype=torch.long), (ids[:, 1] >= VOCAB // 2).long()
    return [
        {"input_ids": row, "attention_mask": mask, "labels": label} for row, label in zip(ids, labels, strict=True)
    ]


def lma_model():
    model = tiny_model(config=tiny_config("bert", 2))
    swap_activations_(model, LMAConfig(statistics="running", per_channel=True))
    return model


def break_embeddings(model, calls):
    """NaN out of the word embeddings in these forward passes (from 1), so that statistics see it too."""
    count = [0]

    def hook(module, inputs, output):
        count[0] += 1
        return output * math.nan if count[0] in calls else output

    model.get_input_embeddings().register_forward_hook(hook)


def break_gradient(model, calls):
    """A finite loss whose gradient is not: the root of 0."""
    count = [0]

    def hook(module, inputs, output):
        count[0] += 1
        if count[0] in calls:
            output.logits = output.logits + (output.logits.sum() * 0).sqrt()
        return output

    model.register_forward_hook(hook)


def config_of(accumulated, **values):
    values = {"learning_rate": 1e-2, "num_train_epochs": 1, "logging_steps": 3, "on_nan": "skip", **values}
    values["gradient_accumulation_steps"] = accumulated
    return TeachConfig(task_name="sst2", output_dir="unused", model_name_or_path="unused", **values)


def train(model, config, token_ids=None):
    """(TrainResult, log lines)."""
    lines = []
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.gradient_accumulation_steps)
    trainer = Trainer(
        model,
        TaskObjective(),
        DataLoader(rows(4 * STEPS * config.gradient_accumulation_steps), batch_size=4),
        evaluate=lambda model, step: 0.0,
        save_best=lambda: None,
        log=lambda values, step: lines.append(values),
        config=config,
        accelerator=accelerator,
        activation_parameters=activation_parameters(model),
        token_ids=token_ids,
    )
    return trainer.train(), lines


def train_without(model, config, left_out):
    """The same by hand, without the batches of some steps; the schedule goes on."""
    accumulated, objective = config.gradient_accumulation_steps, TaskObjective()
    optimizer = build_optimizer([model], activation_parameters(model), config)
    scheduler = build_scheduler(optimizer, STEPS, config)
    batches = list(DataLoader(rows(4 * STEPS * accumulated), batch_size=4))
    model.train()
    for step in range(STEPS):
        if step + 1 not in left_out:
            for batch in batches[step * accumulated : (step + 1) * accumulated]:
                (objective(model, batch)["loss"] / accumulated).backward()
            if config.max_grad_norm:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()  # without gradients it does nothing
        scheduler.step()
        optimizer.zero_grad()


# of the rows, of which no word is below 5; with them the gradient's norm is a sum in another order
@pytest.mark.parametrize(("token_ids", "tolerance"), [(None, 0.0), (range(5, VOCAB), 1e-9)])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("harm", [break_embeddings, break_gradient])
@pytest.mark.parametrize(("accumulated", "calls", "left_out"), [(1, {1, 4}, {1, 4}), (2, {4, 9, 10}, {2, 5})])
def test_step_is_left_out_as_if_it_had_not_been(
    caplog, accumulated, calls, left_out, harm, max_grad_norm, token_ids, tolerance
):
    config = config_of(accumulated, max_grad_norm=max_grad_norm)
    # in float64, so that Adam does not blow rounding up
    model, oracle = lma_model().double(), lma_model().double()
    harm(model, calls)
    result, lines = train(model, config, token_ids)
    train_without(oracle, config, left_out)
    torch.testing.assert_close(model.state_dict(), oracle.state_dict(), rtol=tolerance, atol=tolerance)
    assert (result.skipped_steps, result.num_steps) == (len(left_out), STEPS)
    assert [line.get("skipped_steps", []) for line in lines] == [
        [step for step in sorted(left_out) if step <= 3],
        [step for step in sorted(left_out) if step > 3],
    ]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "left out 1 steps without a finite loss and gradient" in caplog.text


def test_nothing_is_left_out_of_a_sound_run():
    skipping, stopping = lma_model(), lma_model()
    result, lines = train(skipping, config_of(1))
    _, expected = train(stopping, config_of(1, on_nan="stop"))
    torch.testing.assert_close(skipping.state_dict(), stopping.state_dict(), rtol=0, atol=0)
    assert result.skipped_steps == 0
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]
    assert not any("skipped_steps" in line for line in lines)


def test_line_without_any_finite_loss_has_none():
    model = lma_model()
    break_embeddings(model, {4, 5, 6})
    _, lines = train(model, config_of(1))
    assert [line["loss"] is None for line in lines] == [False, True]


def test_default_stops():
    model = lma_model()
    break_embeddings(model, {4})
    with pytest.raises(TrainingError, match=r"the loss is nan at step 6 of 6; .*--on_nan skip"):
        train(model, config_of(1, on_nan="stop"))
