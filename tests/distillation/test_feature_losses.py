"""Losses on hidden states, attention scores and relations: values by hand, and what holds for all of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.distillation.losses import (
    attention_score_loss,
    hidden_cosine_loss,
    hidden_state_loss,
    relation_loss,
    relation_scores,
)

HEADS = 2
LENGTHS = [5, 2, 3, 1]


def on_states(loss):
    return lambda student, teacher, mask: loss([student], [teacher], mask)


def on_scores(loss):
    def computed(student, teacher, mask):
        return loss(*(relation_scores(x, x.flip(-1), HEADS) for x in (student, teacher)), mask)

    return computed


LOSSES = {
    "hidden": on_states(hidden_state_loss),
    "hidden_cosine": on_states(hidden_cosine_loss),
    "attention_mse": on_scores(attention_score_loss),
    "relation": on_scores(relation_loss),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
seeds = st.integers(0, 10_000)


def draw(seed, length=5, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, 6, generator=generator, dtype=torch.float64)


def mask_for(length=5):
    return (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).long()


def test_hidden_cosine_loss_by_hand():
    """Angles of 90 and 0 degrees in one row, 180 in the other: ((1 + 0) / 2 + 2) / 2."""
    student = torch.tensor([[[1.0, 0.0], [3.0, 3.0]], [[0.0, 2.0], [7.0, 7.0]]])
    teacher = torch.tensor([[[0.0, 5.0], [1.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert hidden_cosine_loss([student], [teacher], mask).item() == pytest.approx(1.25)


def test_hidden_cosine_is_half_of_the_distance_of_unit_vectors():
    student, teacher = draw(0), draw(1)
    unit = [states / states.norm(dim=-1, keepdim=True) for states in (student, teacher)]
    expected = (unit[0] - unit[1]).square().sum(-1).mean() / 2
    torch.testing.assert_close(hidden_cosine_loss([student], [teacher]), expected)


def test_relation_scores_by_hand():
    """Two heads of size 2: token 0 is (1, 2 | 3, 4), token 1 is (1, 0 | 0, 1)."""
    states = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0]]])
    expected = torch.tensor([[[[5.0, 1.0], [1.0, 1.0]], [[25.0, 4.0], [4.0, 1.0]]]]) / math.sqrt(2)
    torch.testing.assert_close(relation_scores(states, states, 2), expected)


def test_attention_score_loss_by_hand():
    """A row of two real tokens with the errors 1, 2, 0, 0, and a row with one real token and the error 3."""
    teacher = torch.zeros(2, 1, 2, 2)
    student = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]], [[[3.0, 9.0], [9.0, 9.0]]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert attention_score_loss(student, teacher, mask).item() == ((1 + 4) / 4 + 9) / 2


def test_relation_loss_by_hand():
    """Teacher (3/4, 1/4) against student (1/2, 1/2) at one token, equal at the other; a third is padding."""
    teacher = torch.tensor([[[[math.log(3.0), 0.0, 8.0], [0.0, 0.0, 8.0], [8.0, 8.0, 8.0]]]])
    student = torch.zeros(1, 1, 3, 3)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert relation_loss(student, teacher, torch.tensor([[1, 1, 0]])).item() == pytest.approx(divergence / 2, rel=1e-5)


@every_loss
@given(seed=seeds)
def test_zero_at_equality_and_above_elsewhere(loss, seed):
    student, teacher = draw(seed), draw(seed + 1)
    assert loss(student, student, mask_for()).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, teacher, mask_for()).item() > 1e-6


@every_loss
@given(seed=seeds, padding=st.integers(0, 4))
def test_padding_is_not_seen(loss, seed, padding):
    student, teacher = draw(seed), draw(seed + 1)
    expected = loss(student, teacher, mask_for())
    real = mask_for(5 + padding) != 0
    longer = []
    for states, other in ((student, 2), (teacher, 3)):
        garbage = 1e3 * draw(seed + other, 5 + padding)
        garbage[real] = states[mask_for() != 0]
        longer.append(garbage)
    torch.testing.assert_close(loss(*longer, real), expected)
    torch.testing.assert_close(loss(*longer, real.long()), expected)


@every_loss
@given(seed=seeds, split=st.integers(1, 2))
def test_large_batch_is_the_mean_of_equal_smaller_ones(loss, seed, split):
    """Also where rows have different lengths, so that a mean over tokens would weigh the parts differently."""
    student, teacher, mask = draw(seed), draw(seed + 1), mask_for()
    rows = 4 // split
    parts = [loss(*(x[start : start + rows] for x in (student, teacher, mask))) for start in range(0, 4, rows)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(student, teacher, mask))


@every_loss
@pytest.mark.parametrize("start", ["random", "equal", "zero", "huge"])
def test_gradients_are_finite_and_stay_off_padding(loss, start):
    teacher = draw(1).float()
    student = {"random": draw(0).float(), "equal": teacher.clone(), "zero": 0 * teacher, "huge": 1e4 * teacher}[start]
    mask = mask_for()
    mask[3] = 0  # a row of nothing but padding
    student.requires_grad_()
    value = loss(student, teacher, mask)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert (student.grad[mask == 0] == 0).all()


@every_loss
def test_gradient_is_that_of_finite_differences(loss):
    student, teacher = draw(0, 3, 1).requires_grad_(), draw(1, 3, 1)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, torch.tensor([[1, 1, 0]])), student)


@pytest.mark.parametrize("loss", [attention_score_loss, relation_loss])
def test_other_numbers_of_heads_are_errors(loss):
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\).*\(1, 1, 3, 3\)"):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3), torch.ones(1, 3))
