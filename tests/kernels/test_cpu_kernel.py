"""The C++ kernel's forward and gradients, by every instruction set."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from kernel_problems import DTYPES, RESULTS, SEGMENTS, SHAPES, assert_exact_enough, evaluate, exact, problem
from modeling.lma_oracle import lma_oracle
from modeling.test_lma_function import problems

from lma_hf.modeling import reference_lma

pytestmark = pytest.mark.usefixtures("instruction_set")
K_AND_DTYPE = [(k, torch.float32) for k in SEGMENTS] + [(k, dtype) for k in (3, 16, 33) for dtype in DTYPES[1:]]
VIEWS = {
    "transpose": lambda x: x.transpose(0, 1),
    "permute": lambda x: x.permute(2, 0, 1),
    "stride": lambda x: x[:, ::2],
    "strided channels": lambda x: x[..., ::3],
    "offset": lambda x: x[1:, 3:],
    "expand": lambda x: x[:, :1].expand(-1, 6, -1),
    "expand channels": lambda x: x[..., :1].expand(-1, -1, 17),
}


@pytest.mark.parametrize(("k", "dtype"), K_AND_DTYPE, ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_as_exact_as_the_reference(shape, k, own, dtype, cpu):
    arguments = problem(shape, k, own, dtype)
    assert_exact_enough(evaluate(reference_lma.lma, arguments), evaluate(cpu.lma, arguments), arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [8, 16, 33])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_sums_of_one_sign_are_as_exact_as_the_reference(own, k, dtype, cpu):
    arguments = problem((700, 96), k, own, dtype)
    arguments = arguments._replace(x=arguments.x.abs(), grad=arguments.grad.abs())
    assert_exact_enough(evaluate(reference_lma.lma, arguments), evaluate(cpu.lma, arguments), arguments)


@functools.cache
def sums_of_many_problems(k, own):
    """Problems whose sums cancel, the gradients of their tables by the reference, and in float64."""
    shapes = [(17, 300), (1000, 7), (700, 96)]
    given = [problem(shape, k, own, seed=seed) for shape in shapes for seed in range(4)]
    return [(each, evaluate(reference_lma.lma, each)[2:], exact(each)[0][2:]) for each in given]


def mean_error(pairs):
    """Root of the mean square of all errors, relative to the largest sum of each pair (result, exact)."""
    errors = [np.square((mine.double().numpy() - value) / np.abs(value).max()).mean() for mine, value in pairs]
    return np.mean(errors) ** 0.5


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("k", [2, 8, 33])
def test_sums_of_both_signs_are_as_exact_as_the_reference_on_average(k, own, cpu):
    mine, theirs = [], []
    for arguments, reference, value in sums_of_many_problems(k, own):
        mine += zip(evaluate(cpu.lma, arguments)[2:], value, strict=True)
        theirs += zip(reference, value, strict=True)
    assert mean_error(mine) <= 2 * mean_error(theirs) + torch.finfo(torch.float32).eps / 2


@pytest.mark.parametrize("k", [8, 33])
def test_a_number_without_dimensions(k, cpu):
    arguments = problem((), k)
    y, grad_x, *_ = actual = evaluate(cpu.lma, arguments)
    assert y.shape == grad_x.shape == ()
    assert_exact_enough(evaluate(reference_lma.lma, arguments), actual, arguments)


@pytest.mark.parametrize(("shape", "own"), [((0,), 0), ((0, 5), 0), ((0, 5), 1), ((2, 0, 5), 0), ((2, 0, 5), 1)])
def test_nothing_gives_nothing_and_gradients_of_zero(shape, own, cpu):
    arguments = problem(shape, 8, own)
    results = evaluate(cpu.lma, arguments), evaluate(reference_lma.lma, arguments)
    for name, mine, theirs in zip(RESULTS, *results, strict=True):
        assert mine.shape == theirs.shape, name
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_equal_their_copies(view, own, cpu):
    base = problem((5, 6, 17), 8)
    x, grad = view(base.x), view(base.grad)
    arguments = problem(x.shape, 8, own)._replace(x=x, grad=grad)
    copies = arguments._replace(x=x.contiguous(), grad=grad.contiguous())
    assert not x.is_contiguous()
    for mine, expected in zip(evaluate(cpu.lma, arguments), evaluate(cpu.lma, copies), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_gradient_of_a_sum_has_stride_zero(own, cpu):
    arguments = problem((30, 37), 8, own)
    expected = evaluate(cpu.lma, arguments._replace(grad=torch.ones(30, 37)))
    leaves = [tensor.requires_grad_() for tensor in arguments[:3]]
    cpu.lma(*leaves, arguments.lower, arguments.step).sum().backward()
    for leaf, grad in zip(leaves, expected[1:], strict=True):
        assert torch.equal(leaf.grad, grad)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=problems())
def test_any_values_and_knots_equal_the_oracle(arguments, cpu):
    x, *others = (tensor.float() for tensor in arguments)
    # differences of such numbers to `lower` are exact; others, a hair below a knot, are rounded onto it in float32
    arguments = [(x * 2**16).round() / 2**16, *others]
    leaves = [tensor.requires_grad_() for tensor in arguments[:3]]
    y = cpu.lma(*leaves, *arguments[3:5])
    y.backward(arguments[5])
    actual = [y, *(leaf.grad for leaf in leaves)]
    with torch.no_grad():
        for mine, expected in zip(actual, lma_oracle(*arguments), strict=True):
            np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("k", SEGMENTS)
def test_knots_and_their_neighbours_belong_to_the_same_segment_as_by_the_reference(k, own, cpu):
    _, slope, intercept, lower, step, _ = problem((37,), k, own)
    slope, intercept = torch.zeros_like(slope), torch.arange(float(k)).expand_as(intercept)
    knots = (lower + step * torch.arange(-1.0, k + 2)[:, None]).expand(-1, 37)
    for towards in (-torch.inf, None, torch.inf):
        x = knots if towards is None else knots.nextafter(torch.tensor(towards))
        mine, theirs = (lma(x, slope, intercept, lower, step) for lma in (cpu.lma, reference_lma.lma))
        assert torch.equal(mine, theirs)


def with_special_values(arguments, at):
    """Every pair of NaN, infinity and ordinary values as (x, dL/dy) in rows of `at`'s channel; some slopes are 0."""
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -2.5])
    x, grad = (tensor.clone() for tensor in (arguments.x, arguments.grad))
    for tensor, values in ((x, special.repeat_interleave(5)), (grad, special.repeat(5))):
        tensor[: len(values), at] = values.to(tensor.dtype)
    slope = arguments.slope.clone()
    slope[..., 0] = 0
    return arguments._replace(x=x, grad=grad, slope=slope)


@pytest.mark.parametrize("at", [0, 5, 16, 36])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("k", [2, 8, 16, 33])
def test_nan_and_infinity_go_where_they_go_by_the_reference(k, own, dtype, at, cpu):
    arguments = with_special_values(problem((30, 37), k, own, dtype), at)
    results = evaluate(cpu.lma, arguments), evaluate(reference_lma.lma, arguments)
    for name, mine, theirs in zip(RESULTS, *results, strict=True):
        finite = theirs.isfinite()
        assert torch.equal(mine.isfinite(), finite), name
        np.testing.assert_array_equal(mine[~finite].float(), theirs[~finite].float(), err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("own", ["pieces", "bounds"])
def test_pieces_and_bounds_need_not_both_be_of_each_channel(own, dtype, cpu):
    shared, separate = (problem((40, 17), 8, each, dtype) for each in (False, True))
    arguments = separate._replace(lower=shared.lower, step=shared.step)
    if own == "bounds":
        arguments = shared._replace(lower=separate.lower, step=separate.step)
    actual, reference = (evaluate(lma, arguments) for lma in (cpu.lma, reference_lma.lma))
    full = arguments._replace(lower=arguments.lower.expand(17), step=arguments.step.expand(17))
    if own == "bounds":
        for mine, theirs in zip(actual, reference, strict=True):
            torch.testing.assert_close(mine, theirs)
    else:
        assert_exact_enough(reference, actual, full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_tables_of_other_dtypes_get_gradients_of_theirs(own, dtype, cpu):
    arguments = problem((40, 17), 8, own)
    tables = [tensor.to(dtype) for tensor in arguments[1:5]]
    actual = evaluate(cpu.lma, arguments._replace(**dict(zip(arguments._fields[1:5], tables, strict=True))))
    rounded = [tensor.float() for tensor in tables]
    expected = evaluate(cpu.lma, arguments._replace(**dict(zip(arguments._fields[1:5], rounded, strict=True))))
    for mine, theirs, wanted in zip(actual, expected, (torch.float32, torch.float32, dtype, dtype), strict=True):
        assert torch.equal(mine, theirs.to(wanted))


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, True, True), (False, False, True)]
)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_only_the_gradients_that_are_needed_are_given(own, needed, cpu):
    arguments = problem((40, 17), 8, own)
    expected = evaluate(cpu.lma, arguments)[1:]
    leaves = [tensor.detach().requires_grad_(bool(need)) for tensor, need in zip(arguments[:3], needed, strict=True)]
    cpu.lma(*leaves, arguments.lower, arguments.step).backward(arguments.grad)
    for leaf, need, grad in zip(leaves, needed, expected, strict=True):
        assert torch.equal(leaf.grad, grad) if need else leaf.grad is None


@pytest.mark.parametrize("k", [8, 13, 33])
def test_a_result_too_large_for_the_caches_is_the_same(k, cpu):
    x = torch.randn(2752, 1536, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slope, intercept = torch.randn(2, k, generator=torch.Generator().manual_seed(1))
    tables = (slope, intercept, torch.tensor(-3.0), torch.tensor(6 / k))
    whole = cpu.lma(x, *tables)
    (grad,) = torch.autograd.grad(whole, x, x.detach())
    beside, *_ = cpu.lma_with_statistics(x.detach(), *tables)
    parts = [cpu.lma(part, *tables) for part in x.split(344)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=0)
    torch.testing.assert_close(beside, whole.detach(), rtol=0, atol=0)
    grads = [torch.autograd.grad(part, x, x.detach()[at * 344 :][:344])[0] for at, part in enumerate(parts)]
    torch.testing.assert_close(grad, sum(grads), rtol=0, atol=0)
