import pytest
import torch
from helpers import padded_batch, tiny_config, tiny_model

from lma_hf import build_student
from lma_hf.distillation.losses import hidden_state_loss, knowledge_distillation_loss, logit_loss, task_loss
from lma_hf.distillation.objective import DistillationObjective, TaskObjective
from lma_hf.distillation.teacher import Teacher

DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
LAYER_MAP = [1, 3]


def pair(student_hidden_size=None, **overrides):
    """(teacher of 4 layers, student of 2 in training mode)"""
    teacher = tiny_model(config=tiny_config("bert", 4, **DROPOUT, **overrides))
    student = build_student(teacher, 2, LAYER_MAP, activation="relu", hidden_size=student_hidden_size)
    return teacher, student.train()


def batch_for(model, labels=(0, 1, 1)):
    return {**padded_batch(model, [7, 4, 9]), "labels": torch.tensor(labels)}


def objective_for(teacher, student, hidden_loss_weight=0.0, **arguments):
    return DistillationObjective(
        Teacher(teacher),
        hidden_loss_weight=hidden_loss_weight,
        layer_map=LAYER_MAP,
        student_hidden_size=student.config.hidden_size,
        teacher_hidden_size=teacher.config.hidden_size,
        **arguments,
    )


@pytest.mark.parametrize("num_labels", [2, 1])
def test_parts_are_the_losses_and_sum_with_their_weights(num_labels):
    teacher, student = pair(num_labels=num_labels)
    student.eval()
    batch = batch_for(teacher) if num_labels == 2 else batch_for(teacher, (0.3, 1.7, -2.0))
    weights = {"task_loss_weight": 0.2, "distill_loss_weight": 0.5, "hidden_loss_weight": 3.0}
    parts = objective_for(teacher, student, temperature=4.0, **weights)(student, batch)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
    paired = [theirs.hidden_states[index] for index in (0, 2, 4)]
    soft = logit_loss(ours.logits, theirs.logits)
    if num_labels == 2:
        soft = knowledge_distillation_loss(ours.logits, theirs.logits, 4.0)
    expected = {
        "task_loss": task_loss(ours.logits, batch["labels"]),
        "distill_loss": soft,
        "hidden_loss": hidden_state_loss(list(ours.hidden_states), paired, batch["attention_mask"]),
    }
    assert all(value > 0 for value in expected.values())
    expected["loss"] = sum(weight * expected[name.removesuffix("_weight")] for name, weight in weights.items())
    torch.testing.assert_close(parts, expected)


def test_unweighted_hidden_states_are_not_asked_for():
    teacher, student = pair()
    assert set(objective_for(teacher, student)(student, batch_for(teacher))) == {"loss", "task_loss", "distill_loss"}


def test_task_objective_is_the_models_own_loss():
    teacher, _ = pair()
    batch = batch_for(teacher)
    torch.testing.assert_close(TaskObjective()(teacher, batch), {"loss": teacher(**batch).loss})


def test_padding_does_not_change_the_parts():
    teacher, student = pair()
    student.eval()
    objective = objective_for(teacher, student, 1.0)
    batch = batch_for(teacher)
    longer = {**padded_batch(teacher, [7, 4, 9], pad_to=20), "labels": batch["labels"]}
    torch.testing.assert_close(objective(student, longer), objective(student, batch), rtol=1e-4, atol=1e-5)


def test_teacher_is_frozen_and_stays_in_eval_mode():
    teacher, student = pair()
    teacher.train()
    objective = objective_for(teacher, student, 1.0)
    objective.train()
    batch = batch_for(teacher)
    assert not any(module.training for module in teacher.modules())
    first, second = (objective.teacher({"input_ids": batch["input_ids"]})[0] for _ in range(2))
    assert torch.equal(first, second)
    objective(student, batch)["loss"].backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert list(objective.parameters()) == []
    assert list(objective.state_dict()) == []


def test_projections_are_trained_and_no_part_of_the_student(tmp_path):
    teacher, student = pair(student_hidden_size=8)
    objective = objective_for(teacher, student, 1.0)
    names = set(student.state_dict())
    parameters = dict(objective.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items() if name.endswith("weight")} == {
        f"projections.{i}.weight": (16, 8) for i in range(3)
    }
    objective(student, batch_for(teacher))["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters.values())
    assert set(student.state_dict()) == names
    student.save_pretrained(tmp_path)
    loaded, info = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert set(loaded.state_dict()) == names


@pytest.mark.parametrize(("layers", "count"), [("last", 1), ("all", 2)])
def test_every_projection_is_used(layers, count):
    teacher, student = pair(student_hidden_size=8)
    objective = objective_for(teacher, student, hidden_cosine_loss_weight=1.0, hidden_cosine_layers=layers)
    assert len(objective.projections) == count
    objective(student, batch_for(teacher))["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


def test_equal_widths_need_no_projections():
    teacher, student = pair()
    assert list(objective_for(teacher, student, 1.0).parameters()) == []


def test_student_equal_to_the_teacher_has_no_distillation_loss():
    teacher, _ = pair()
    student = build_student(teacher, 4, activation=None)
    objective = DistillationObjective(Teacher(teacher), hidden_loss_weight=1.0, layer_map=range(4))
    parts = objective(student, batch_for(teacher))
    assert parts["distill_loss"].item() == pytest.approx(0, abs=1e-6)
    assert parts["hidden_loss"].item() == 0
    assert parts["loss"].item() == pytest.approx(0.3 * parts["task_loss"].item(), rel=1e-5)


def test_layer_map_of_another_depth_is_an_error():
    teacher, student = pair()
    objective = DistillationObjective(Teacher(teacher), hidden_loss_weight=1.0, layer_map=[3])
    with pytest.raises(ValueError, match="3 of the student, 2 of the teacher"):
        objective(student, batch_for(teacher))
