"""Count, mean and squared deviations by the C++ kernel, alone and beside the forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_problems import DTYPES, problem
from modeling.lma_oracle import statistics_oracle

from lma_hf.modeling import statistics_lma
from lma_hf.modeling.reference_lma import lma_with_statistics

pytestmark = pytest.mark.usefixtures("instruction_set")
OWN = pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
SHAPES = [(1,), (37,), (1, 7), (17, 37), (2, 5, 16), (1000, 1), (1000, 7), (700, 96)]
MASKS = {
    "none": lambda rows: None,
    "random": lambda rows: torch.rand(rows, generator=torch.Generator().manual_seed(0)) < 0.6,
    "runs": lambda rows: torch.arange(rows) % 90 < 40,
    "every other": lambda rows: torch.arange(rows) % 2 == 0,
    "one row": lambda rows: torch.arange(rows) == rows // 2,
}
BESIDE = pytest.mark.parametrize("beside", [None, 0.0, 1e4], ids=["alone", "beside", "beside, far away"])


def statistics(kernels, x, mask, own, beside):
    """(count, mean, m2), alone or beside the forward pass with segments around the number `beside`."""
    if beside is None:
        return kernels.token_statistics(x, mask, own)
    _, slope, intercept, lower, step, _ = problem(x.shape, 8, own)
    return kernels.lma_with_statistics(x, slope, intercept, lower + beside, step, mask)[1:]


def numbers(shape, mean=0.0, std=1.0, dtype=torch.float32):
    return (mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(7))).to(dtype)


def mask_of(x, pattern):
    mask = MASKS[pattern](x.shape[:-1].numel())
    return None if mask is None else mask.reshape(x.shape[:-1])


def errors(found, expected):
    """Largest errors of the mean and of the standard deviation, both relative to the latter."""
    count, mean, m2 = (tensor.double().numpy() for tensor in found)
    exact_mean, exact_std = expected
    size = np.maximum(exact_std, np.finfo(np.float32).tiny)
    return np.max(np.abs(mean - exact_mean) / size), np.max(np.abs(np.sqrt(m2 / count) - exact_std) / size)


@pytest.mark.parametrize("beside", [None, 0.0], ids=["alone", "beside"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ["none", "random", "every other", "one row"])
@OWN
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_as_exact_as_the_reference(shape, own, pattern, dtype, beside, cpu):
    x = numbers(shape, 0.3, 1.0, dtype)
    mask = mask_of(x, pattern)
    mine, theirs = statistics(cpu, x, mask, own, beside), statistics_lma.token_statistics(x, mask, own)
    expected = statistics_oracle(x.double(), own, mask)
    assert torch.equal(mine[0], theirs[0])
    assert [tensor.dtype for tensor in mine] == [torch.float32] * 3
    assert [tensor.shape for tensor in mine] == [tensor.shape for tensor in theirs]
    if (expected[1] > 0).all():
        for error, reference in zip(errors(mine, expected), errors(theirs, expected), strict=True):
            assert error <= 2 * reference + torch.finfo(torch.float32).eps


@BESIDE
@pytest.mark.parametrize("pattern", ["none", "random", "runs", "every other"])
@OWN
@pytest.mark.parametrize("shape", [(20, 96), (17, 37), (30, 1), (700, 96), (1000, 300)], ids=str)
def test_a_mean_far_from_zero_costs_the_deviation_no_digits(shape, own, pattern, beside, cpu):
    x = numbers(shape, 1e4)
    mask = mask_of(x, pattern)
    expected = statistics_oracle(x.double(), own, mask)
    _, error = errors(statistics(cpu, x, mask, own, beside), expected)
    _, reference = errors(statistics_lma.token_statistics(x, mask, own), expected)
    assert error <= 1e-4
    assert error <= 2 * reference + 1e-6


@BESIDE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@OWN
def test_a_constant_deviates_by_nothing(own, dtype, beside, cpu):
    x = torch.full((700, 96), 3.140625, dtype=dtype)
    count, mean, m2 = statistics(cpu, x, mask_of(x, "random"), own, beside)
    torch.testing.assert_close(mean, torch.full_like(mean, 3.140625), rtol=1e-6, atol=0)
    assert bool((m2 <= count * 1e-12).all())


@BESIDE
@pytest.mark.parametrize("value", [0.1, 0.7, -0.3])
@OWN
def test_rounding_puts_no_deviation_below_zero(own, value, beside, cpu):
    _, _, m2 = statistics(cpu, torch.full((4, 768), value), None, own, beside)
    assert bool((m2 >= 0).all())


@BESIDE
@OWN
@pytest.mark.parametrize("shape", [(5, 17), (0, 17), (2, 0, 17), (300, 300)], ids=str)
def test_no_real_token_counts_nothing(shape, own, beside, cpu):
    x = numbers(shape)
    mine = statistics(cpu, x, torch.zeros(shape[:-1], dtype=torch.bool), own, beside)
    assert all(torch.equal(tensor, torch.zeros(shape[-1:] if own else ())) for tensor in mine)


@BESIDE
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@OWN
def test_padding_may_hold_anything(own, value, beside, cpu):
    x = numbers((300, 37))
    mask = mask_of(x, "random")
    expected = statistics(cpu, x, mask, own, beside)
    x[~mask] = value
    assert all(map(torch.equal, statistics(cpu, x, mask, own, beside), expected))


@BESIDE
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@OWN
def test_what_is_not_finite_shows(own, value, beside, cpu):
    x = numbers((300, 37))
    x[123, 5] = value
    _, mean, m2 = statistics(cpu, x, None, own, beside)
    wrong = torch.arange(37) == 5 if own else torch.tensor(True)
    assert torch.equal(~mean.isfinite(), wrong)
    assert torch.equal(~m2.isfinite(), wrong)


@BESIDE
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16], ids=str)
@OWN
def test_a_mask_is_of_any_dtype(own, dtype, beside, cpu):
    x = numbers((4, 25, 17))
    mask = mask_of(x, "random")
    expected = statistics(cpu, x, mask, own, beside)
    assert all(map(torch.equal, statistics(cpu, x, mask.to(dtype) * 2, own, beside), expected))


@pytest.mark.parametrize("wrong", [(4,), (25, 4), (4, 25, 1), (100,)], ids=str)
def test_a_mask_that_does_not_fit_is_named(wrong, cpu):
    x, mask = numbers((4, 25, 17)), torch.ones(wrong)
    for beside in (None, 0.0):
        with pytest.raises(ValueError, match=r"\(4, 25\)"):
            statistics(cpu, x, mask, False, beside)


@BESIDE
@OWN
@pytest.mark.parametrize(
    "view", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[:, :1].expand(-1, 9, -1)]
)
def test_views_have_the_statistics_of_their_copies(view, own, beside, cpu):
    x = view(numbers((20, 30, 17)))
    mask = mask_of(x, "random")
    expected = statistics(cpu, x.contiguous(), mask, own, beside)
    assert all(map(torch.equal, statistics(cpu, x, mask, own, beside), expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@OWN
@pytest.mark.parametrize("pattern", ["none", "random", "one row"])
@pytest.mark.parametrize("k", [8, 16, 33])
def test_statistics_on_the_way_leave_y_and_gradients_alone(k, pattern, own, dtype, cpu):
    given = problem((300, 37), k, own, dtype)
    results = []
    for function in (cpu.lma, lambda *tensors: cpu.lma_with_statistics(*tensors, mask_of(given.x, pattern))[0]):
        leaves = [tensor.detach().requires_grad_() for tensor in given[:3]]
        y = function(*leaves, given.lower, given.step)
        y.backward(given.grad)
        results.append([y, *(leaf.grad for leaf in leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("own", ["pieces", "bounds"])
def test_statistics_are_of_each_channel_where_they_are_by_the_reference(own, cpu):
    x, shared, separate = numbers((30, 17)), problem((30, 17), 8), problem((30, 17), 8, own=True)
    pieces, bounds = (separate, shared) if own == "pieces" else (shared, separate)
    arguments = x, pieces.slope, pieces.intercept, bounds.lower, bounds.step
    for mine, theirs in zip(cpu.lma_with_statistics(*arguments), lma_with_statistics(*arguments), strict=True):
        torch.testing.assert_close(mine, theirs)


@OWN
def test_statistics_need_no_gradient(own, cpu):
    x = numbers((30, 17)).requires_grad_()
    for beside in (None, 0.0):
        assert not any(tensor.requires_grad for tensor in statistics(cpu, x, None, own, beside))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=st.lists(st.booleans(), min_size=1, max_size=200), channels=st.integers(1, 40), own=st.booleans())
def test_any_mask_selects_its_rows(mask, channels, own, cpu):
    x, mask = numbers((len(mask), channels), 0.3), torch.tensor(mask)
    for beside in (None, 0.0):
        mine = statistics(cpu, x, mask, own, beside)
        for tensor, expected in zip(mine, statistics_lma.token_statistics(x.double(), mask, own), strict=True):
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-4, atol=1e-5)
