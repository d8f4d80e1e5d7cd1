import copy

import pytest
import torch
from helpers import ARCHITECTURES, padded_batch, tiny_config, tiny_model
from torch import nn

from lma_hf import LMAConfig, build_student
from lma_hf.errors import StudentError
from lma_hf.student.warmup import relative_error, teacher_examples, warm_up_ffns_
from lma_hf.surgery.targets import ffn_sites

RATES = {"learning_rate": 3e-3, "activation_learning_rate": 1e-2}
WITH_OWN_LAYERS = [name for name in ARCHITECTURES if name != "albert"]


def batches(model, count=2):
    return [padded_batch(model, [7, 4, 9], seed=seed) for seed in range(count)]


def test_relative_error_by_hand():
    target = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    # around its mean (2, 4) the target is 1, 4, 1, 4
    assert relative_error(target.mean(0).expand(2, 2), target).item() == 1
    assert relative_error(target + torch.tensor([1.0, 0.0]), target).item() == pytest.approx(0.5 / 2.5)
    assert relative_error(target, target).item() == 0
    assert relative_error(torch.ones(2, 2), torch.ones(2, 2)).item() == 0


@pytest.mark.parametrize("architecture", WITH_OWN_LAYERS)
def test_examples_are_what_the_teachers_ffn_sees_and_answers_at_real_tokens(architecture):
    teacher = tiny_model(architecture, num_layers=2).train()
    (batch,) = batches(teacher, 1)
    examples = teacher_examples(teacher, ffn_sites(teacher), batch)
    assert teacher.training
    for site, (x, y) in zip(ffn_sites(teacher), examples, strict=True):
        assert x.shape == y.shape == (20, 16)
        up, activation, down = (teacher.base_model.get_submodule(f) for f in (site.up, site.activation, site.down))
        torch.testing.assert_close(down(activation(up(x))), y)
    padded = teacher_examples(teacher, ffn_sites(teacher), padded_batch(teacher, [7, 4, 9], pad_to=20))
    torch.testing.assert_close(padded, examples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_narrow_ffns_come_closer_and_nothing_else_moves(statistics):
    teacher = tiny_model(num_layers=4)
    activation = LMAConfig(statistics=statistics, init="fit", per_channel=True)
    data = batches(teacher)
    student = build_student(teacher, 2, [1, 3], activation, intermediate_size=16, calibration_batches=data)
    before = copy.deepcopy(student.state_dict())
    report = warm_up_ffns_(student, teacher, [1, 3], data, 60, **RATES)
    assert len(report.error_before) == len(report.error_after) == 2
    assert all(after < 0.7 * first for first, after in zip(report.error_before, report.error_after, strict=True))
    assert "60 steps" in str(report)
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    ffn = ("intermediate.dense", "intermediate.intermediate_act_fn", ".output.dense")
    assert all(any(part in name for part in ffn) and "attention" not in name for name in moved)
    assert sum(name.endswith("slope") for name in moved) == 2
    assert not any(module.training for module in student.modules())
    assert all(parameter.grad is None for parameter in (*student.parameters(), *teacher.parameters()))


def test_copy_of_the_teacher_has_nothing_to_learn():
    teacher = tiny_model(num_layers=2)
    student = build_student(teacher, 2, activation=None)
    report = warm_up_ffns_(student, teacher, [0, 1], batches(teacher), 2, **RATES)
    assert report.error_before == pytest.approx([0, 0], abs=1e-10)


def test_layers_learn_side_by_side():
    """What layer 1 learns does not depend on layer 0."""
    teacher = tiny_model(num_layers=2)
    states = []
    for scale in (1, 5):
        student = build_student(teacher, 2, activation="relu")
        with torch.no_grad():
            nn.init.normal_(student.bert.encoder.layer[0].output.dense.weight, std=0.1 * scale)
        warm_up_ffns_(student, teacher, [0, 1], batches(teacher), 5, **RATES)
        states.append(student.bert.encoder.layer[1].state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_models_that_cannot_be_compared_are_errors():
    teacher = tiny_model(num_layers=2)
    narrow = build_student(teacher, 2, activation=None, hidden_size=8, num_attention_heads=2)
    with pytest.raises(StudentError, match="hidden_size is 8 and the teacher's 16"):
        warm_up_ffns_(narrow, teacher, [0, 1], batches(teacher), 1, **RATES)
    shared = tiny_model(config=tiny_config("albert", 2))
    with pytest.raises(StudentError, match="AlbertForSequenceClassification has gated FFNs, or not one FFN"):
        warm_up_ffns_(shared, shared, [0, 1], batches(shared), 1, **RATES)
