"""The distillation objective with feature losses, schedules, stages, replacement and rows without labels."""

import pytest
import torch
from helpers import padded_batch, tiny_config, tiny_model

from lma_hf import build_student
from lma_hf.distillation.attention import AttentionObjective
from lma_hf.distillation.losses import hidden_cosine_loss, knowledge_distillation_loss, logit_loss
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.schedules import Schedule
from lma_hf.distillation.teacher import Teacher
from lma_hf.distillation.theseus import ModuleReplacement

LAYER_MAP = [1, 3]
LENGTHS = [7, 4, 9, 2]
WEIGHTS = {
    "task": 0.2,
    "distill": 0.5,
    "hidden": 3.0,
    "hidden_cosine": 0.7,
    "attention": 0.1,
    "relation": 1.3,
}
FEATURES = ("hidden", "hidden_cosine", "attention", "relation")


def world(**arguments):
    """(teacher, student, objective with every part, batch)"""
    teacher = tiny_model(config=tiny_config("bert", 4))
    student = build_student(teacher, 2, LAYER_MAP, activation="relu")
    attention = AttentionObjective(student, teacher, LAYER_MAP, attention="mse", relation=True)
    weights = {f"{part}_loss_weight": weight for part, weight in WEIGHTS.items()}
    objective = DistillationObjective(
        Teacher(teacher), layer_map=LAYER_MAP, attention=attention, **weights | arguments
    )
    batch = {**padded_batch(teacher, LENGTHS), "labels": torch.tensor([0, 1, 1, 0])}
    return teacher, student, objective, batch


def weighted(parts, weights=WEIGHTS):
    return sum(weight * parts[f"{part}_loss"] for part, weight in weights.items())


def test_every_part_has_its_name_and_its_weight():
    _, student, objective, batch = world()
    parts = objective(student, batch)
    assert set(parts) == {"loss", *(f"{part}_loss" for part in WEIGHTS)}
    assert all(value > 0 for value in parts.values())
    torch.testing.assert_close(parts["loss"], weighted(parts))


def test_accumulated_batches_of_uneven_rows_are_one_large_batch():
    """Rows of 7, 4, 9 and 2 tokens, of which the first alone has a label: every part and the gradient."""
    _, student, objective, batch = world(labelled_share=0.25)
    batch["labels"] = torch.tensor([1, -100, -100, -100])
    whole = objective(student, batch)
    whole["loss"].backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    halves = [objective(student, {key: value[rows] for key, value in batch.items()}) for rows in ([0, 1], [2, 3])]
    sum(half["loss"] / 2 for half in halves).backward()
    torch.testing.assert_close({key: (halves[0][key] + halves[1][key]) / 2 for key in whole}, whole)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_schedules_move_weights_and_temperature_with_the_progress():
    schedules = {"temperature": Schedule("linear", 4, 1), "task_loss_weight": Schedule("cosine", 0, 1)}
    teacher, student, objective, batch = world(schedules=schedules)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for progress, temperature, task_weight in ((0.0, 4.0, 0.0), (0.5, 2.5, 0.5), (1.0, 1.0, 1.0)):
        objective.progress = progress
        parts = objective(student, batch)
        soft = knowledge_distillation_loss(student(**inputs).logits, teacher(**inputs).logits, temperature)
        torch.testing.assert_close(parts["distill_loss"], soft)
        torch.testing.assert_close(parts["loss"], weighted(parts, WEIGHTS | {"task": task_weight}))


def test_features_come_first_and_then_labels_and_logits():
    _, student, objective, batch = world(feature_stage=0.6)
    for progress, counted in (
        (0.0, FEATURES),
        (0.59, FEATURES),
        (0.6, ("task", "distill")),
        (1.0, ("task", "distill")),
    ):
        objective.progress = progress
        parts = objective(student, batch)
        torch.testing.assert_close(parts["loss"], weighted(parts, {part: WEIGHTS[part] for part in counted}))
        assert set(parts) == {"loss", *(f"{part}_loss" for part in WEIGHTS)}


def test_first_stage_leaves_the_classifier_alone():
    _, student, objective, batch = world(feature_stage=0.6)
    objective(student, batch)["loss"].backward()
    assert not student.classifier.weight.grad.any()
    assert student.bert.encoder.layer[1].output.dense.weight.grad.any()


@pytest.mark.parametrize(("layers", "states"), [("last", [4]), ("all", [2, 4])])
@pytest.mark.parametrize("tokens", ["all", "first"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_cosine_of_the_chosen_layers_and_tokens(layers, states, tokens, side):
    teacher, student, objective, batch = world(hidden_cosine_layers=layers, hidden_cosine_tokens=tokens)
    if side == "left":
        batch |= {key: batch[key].flip(1) for key in ("input_ids", "attention_mask")}
    found = objective(student, batch)["hidden_cosine_loss"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    ours, theirs = (model(**inputs, output_hidden_states=True).hidden_states for model in (student, teacher))
    mask = batch["attention_mask"]
    if tokens == "first":
        mask = torch.zeros_like(mask)
        starts = torch.tensor([0, 0, 0, 0] if side == "right" else [9 - length for length in LENGTHS])
        mask[torch.arange(4), starts] = 1
    expected = hidden_cosine_loss([ours[i // 2] for i in states], [theirs[i] for i in states], mask)
    torch.testing.assert_close(found, expected)


def test_squared_error_of_logits_instead_of_soft_targets():
    teacher, student, objective, batch = world(distill_loss_type="mse")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = logit_loss(student(**inputs).logits, teacher(**inputs).logits)
    torch.testing.assert_close(objective(student, batch)["distill_loss"], expected)


def test_replacement_follows_its_schedule():
    teacher, student, _, batch = world()
    layers = [list(model.bert.encoder.layer) for model in (student, teacher)]
    objective = DistillationObjective(
        Teacher(teacher),
        replacement=ModuleReplacement(*layers, LAYER_MAP),
        schedules={"replacement_rate": Schedule("linear", 0, 1, 0.5)},
    )
    student.train()
    assert objective(student, batch)["distill_loss"].item() == pytest.approx(0, abs=1e-6)
    objective.progress = 0.5
    assert objective(student, batch)["distill_loss"].item() > 1e-4


def test_padding_does_not_change_the_parts():
    teacher, student, objective, batch = world()
    longer = {**padded_batch(teacher, LENGTHS, pad_to=20), "labels": batch["labels"]}
    torch.testing.assert_close(objective(student, longer), objective(student, batch), rtol=1e-4, atol=1e-5)


def test_batch_without_a_mask_counts_every_token():
    teacher, student, objective, _ = world()
    batch = {**padded_batch(teacher, [6, 6]), "labels": torch.tensor([0, 1])}
    parts = objective(student, batch)
    torch.testing.assert_close(objective(student, {k: v for k, v in batch.items() if k != "attention_mask"}), parts)
