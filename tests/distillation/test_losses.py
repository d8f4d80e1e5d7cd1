import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.distillation.losses import hidden_state_loss, knowledge_distillation_loss, logit_loss, task_loss

seeds = st.integers(0, 10_000)
temperatures = st.floats(0.3, 20)


def logits(seed, rows=4, labels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, labels, generator=generator, dtype=torch.float64) * 2


def test_distillation_loss_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2); at T = 2 the logits are doubled."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert knowledge_distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert knowledge_distillation_loss(student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-5)
    # the direction is KL(teacher || student)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert knowledge_distillation_loss(teacher, student, 1.0).item() == pytest.approx(backward, rel=1e-5)


def test_distillation_loss_is_a_mean_over_rows():
    student, teacher = logits(0), logits(1)
    rows = [knowledge_distillation_loss(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(4)]
    torch.testing.assert_close(knowledge_distillation_loss(student, teacher, 2.0), torch.stack(rows).mean())


@given(seed=seeds, temperature=temperatures)
def test_distillation_loss_is_zero_if_and_only_if_the_distributions_are_equal(seed, temperature):
    student = logits(seed).clamp(-3, 3)
    assert knowledge_distillation_loss(student, student, temperature).item() == pytest.approx(0, abs=1e-12)
    other = student.clone()
    other[0, 0] += 1.0
    assert knowledge_distillation_loss(student, other, temperature) > 1e-10


@given(seed=seeds, temperature=temperatures, shift=st.floats(-50, 50))
def test_adding_a_constant_to_the_logits_of_a_row_changes_nothing(seed, temperature, shift):
    student, teacher = logits(seed), logits(seed + 1)
    expected = knowledge_distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(knowledge_distillation_loss(student + shift, teacher, temperature), expected)
    torch.testing.assert_close(knowledge_distillation_loss(student, teacher - shift, temperature), expected)


@given(seed=seeds)
def test_t_squared_keeps_the_gradient_of_its_size(seed):
    """Hinton et al. 2015: for high T the gradient tends to (centred student - teacher) / labels, free of T."""
    student, teacher = logits(seed), logits(seed + 1)
    gradients = {}
    for temperature in (50.0, 500.0):
        leaf = student.clone().requires_grad_()
        knowledge_distillation_loss(leaf, teacher, temperature).backward()
        gradients[temperature] = leaf.grad
    difference = student - teacher
    limit = (difference - difference.mean(-1, keepdim=True)) / student.shape[-1] / len(student)
    for temperature, gradient in gradients.items():
        assert (gradient - limit).norm() < 10 / temperature * limit.norm()


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="allowed are numbers above 0"):
        knowledge_distillation_loss(logits(0), logits(1), temperature)


@pytest.mark.parametrize("loss", [lambda a, b: knowledge_distillation_loss(a, b, 1.0), logit_loss])
@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,)])
def test_shapes_that_would_broadcast_are_errors(loss, shape):
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        loss(logits(0), torch.zeros(shape))


def test_task_loss_by_hand():
    classes = task_loss(torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([1, 0]))
    assert classes.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)
    # one output: squared error, and no broadcast of (2, 1) against (2,)
    assert task_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([2.0, 3.0])).item() == 2.5
    assert task_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([2, 3])).item() == 2.5


def test_logit_loss_by_hand():
    assert logit_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item() == 2.0


def test_hidden_state_loss_by_hand():
    student = [torch.tensor([[[1.0, 1.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)]
    teacher = [torch.tensor([[[2.0, 3.0], [0.0, 0.0]]]), torch.ones(1, 2, 2)]
    mask = torch.tensor([[1, 0]])
    assert hidden_state_loss(student, teacher, mask).item() == ((1 + 4) / 2 + 1) / 2
    assert hidden_state_loss(student, teacher).item() == pytest.approx(((5 + 162) / 4 + 1) / 2)


@given(seed=seeds, padding=st.integers(1, 5))
def test_hidden_state_loss_does_not_see_padding(seed, padding):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 3, 4, generator=generator).unbind()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = hidden_state_loss([student], [teacher], mask)
    garbage = 1e4 * torch.randn(2, padding, 4, generator=generator)
    padded = [torch.cat([states, garbage * factor], 1) for states, factor in ((student, 1), (teacher, -1))]
    student[0, 2] = 1e4
    longer = torch.cat([mask, torch.zeros(2, padding, dtype=torch.long)], 1)
    torch.testing.assert_close(hidden_state_loss([padded[0]], [padded[1]], longer), expected)
    torch.testing.assert_close(hidden_state_loss([student], [teacher], mask), expected)
    torch.testing.assert_close(hidden_state_loss([student], [teacher], mask.bool()), expected)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([], []), ([torch.zeros(1, 2, 3)], []), ([torch.zeros(1, 2, 3)], [torch.zeros(1, 2, 4)])],
)
def test_hidden_states_that_do_not_pair_are_errors(student, teacher):
    with pytest.raises(ValueError, match=r"hidden states to pair|one shape"):
        hidden_state_loss(student, teacher)


def test_rows_without_a_label_add_nothing_to_the_task_loss():
    classes = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 1.0]])
    labelled = task_loss(classes, torch.tensor([1, 0, -100]), labelled_share=2 / 3)
    assert labelled.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)
    numbers = torch.tensor([[1.0], [5.0], [7.0]])
    assert task_loss(numbers, torch.tensor([2.0, 3.0, math.nan]), 2 / 3).item() == pytest.approx(2.5)
    # of a regression, -100 is a number like any other
    assert task_loss(torch.tensor([[-99.0]]), torch.tensor([-100.0])).item() == 1.0


@pytest.mark.parametrize("outputs", [1, 3])
@given(seed=seeds)
def test_task_loss_accumulates_whichever_rows_have_labels(outputs, seed):
    """3 of 8 rows are labelled, unevenly spread over 4 batches of 2, one of which has none."""
    values = logits(seed, 8, outputs)
    labels = torch.tensor([0, 1, -100, -100, 2, -100, -100, -100])
    if outputs == 1:
        labels = labels.double().masked_fill(labels == -100, math.nan)
    share = 3 / 8
    leaf, whole = values.clone().requires_grad_(), values.clone().requires_grad_()
    parts = [task_loss(leaf[i : i + 2], labels[i : i + 2], share) for i in range(0, 8, 2)]
    torch.stack(parts).mean().backward()
    total = task_loss(whole, labels, share)
    total.backward()
    torch.testing.assert_close(torch.stack(parts).mean(), total)
    torch.testing.assert_close(leaf.grad, whole.grad)
    kept = [0, 1, 4]
    torch.testing.assert_close(total, task_loss(values[kept], labels[kept]))
    assert (whole.grad[[2, 3, 5, 6, 7]] == 0).all()
