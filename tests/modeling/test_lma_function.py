import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from modeling.lma_oracle import knots_oracle, lma_oracle

import lma_hf
from lma_hf.modeling.activation_lma import lines_through_knots

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 5), (4, 1), (0, 5)]
SEGMENTS = [2, 3, 8, 16]


def tables(k, channels=None, seed=0):
    """Random slope and intercept of shape (k,) or (channels, k), with lower and step; float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if channels is None else (channels,)
    slope, intercept = torch.randn(2, *shape, k, generator=generator, dtype=torch.float64)
    lower = -1 - torch.rand(shape, generator=generator, dtype=torch.float64)
    step = (2 + torch.rand(shape, generator=generator, dtype=torch.float64)) / k
    return slope, intercept, lower, step


def run(x, slope, intercept, lower, step, grad):
    """y, dL/dx, dL/dslope, dL/dintercept by lma_hf, as NumPy arrays."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, slope, intercept)]
    y = lma_hf.lma(*leaves, lower, step)
    y.backward(grad)
    return [tensor.detach().numpy() for tensor in (y, *(leaf.grad for leaf in leaves))]


def assert_equals_oracle(x, slope, intercept, lower, step, grad):
    actual = run(x, slope, intercept, lower, step, grad)
    for mine, expected in zip(actual, lma_oracle(x, slope, intercept, lower, step, grad), strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", SEGMENTS)
@pytest.mark.parametrize(("shape", "per_channel"), [(s, own) for s in SHAPES for own in (False, True) if s or not own])
def test_forward_and_gradients_equal_the_oracle(shape, per_channel, k):
    generator = torch.Generator().manual_seed(k)
    x, grad = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    assert_equals_oracle(x, *tables(k, shape[-1] if per_channel else None), grad)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x[:, ::2],
        lambda x: x[..., 1:4],
        lambda x: x[1].t(),
        lambda x: x[:, :1].expand(-1, 6, -1),
    ],
    ids=["transpose", "permute", "stride", "slice", "t", "expand"],
)
def test_views_equal_the_oracle(view, per_channel):
    base = 2 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = view(base)
    grad = view(torch.linspace(-1, 1, base.numel(), dtype=torch.float64).view(base.shape))
    assert not x.is_contiguous()
    assert_equals_oracle(x, *tables(8, x.shape[-1] if per_channel else None), grad)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradient_of_a_sum_equals_the_oracle(per_channel):
    # sum() hands an expanded gradient back, which has stride 0
    slope, intercept, lower, step = tables(8, 5 if per_channel else None)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    slope.requires_grad_()
    lma_hf.lma(x, slope, intercept, lower, step).sum().backward()
    with torch.no_grad():
        _, grad_x, grad_slope, _ = lma_oracle(x, slope, intercept, lower, step, np.ones(x.shape))
    np.testing.assert_allclose(x.grad.numpy(), grad_x, atol=1e-12)
    np.testing.assert_allclose(slope.grad.numpy(), grad_slope, atol=1e-12)


def dyadic(low, high):
    """Multiples of 1/8: knots made of them are exact in every dtype, so values can lie exactly on them."""
    return st.integers(8 * low, 8 * high).map(lambda n: n / 8)


@st.composite
def problems(draw):
    k, channels, shared = draw(st.sampled_from(SEGMENTS)), draw(st.integers(1, 3)), draw(st.booleans())
    rows = () if shared else (channels,)
    finite = st.floats(-8, 8, width=32)
    slope, intercept = (draw(hnp.arrays(np.float64, (*rows, k), elements=finite)) for _ in range(2))
    lower = draw(hnp.arrays(np.float64, rows, elements=dyadic(-4, 4)))
    step = draw(hnp.arrays(np.float64, rows, elements=st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0])))
    shape = (draw(st.integers(1, 4)), channels)
    knot = lower + step * draw(hnp.arrays(np.int64, shape, elements=st.integers(-1, k + 1)))
    free = draw(hnp.arrays(np.float64, shape, elements=finite))
    x = np.where(draw(hnp.arrays(np.bool_, shape)), knot, free)
    grad = draw(hnp.arrays(np.float64, shape, elements=finite))
    return [torch.tensor(value) for value in (x, slope, intercept, lower, step, grad)]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_any_values_and_knots_equal_the_oracle(problem):
    assert_equals_oracle(*problem)


def test_a_knot_belongs_to_the_segment_on_its_right():
    slope, intercept = torch.zeros(4), torch.arange(4.0)
    knots = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    y = lma_hf.lma(knots, slope, intercept, torch.tensor(-2.0), torch.tensor(1.0))
    assert y.tolist() == [0, 0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [None, 6])
def test_low_precision_is_rounded_once(dtype, channels):
    slope, intercept = (table.float() for table in tables(8, channels)[:2])
    rows = () if channels is None else (channels,)
    lower, step = torch.full(rows, -2.0), torch.full(rows, 0.5)
    x = (3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(3))).to(dtype)
    grad = torch.ones(50, 6, dtype=dtype)
    y = lma_hf.lma(x.requires_grad_(), slope.requires_grad_(), intercept, lower, step)
    y.backward(grad)
    assert (y.dtype, x.grad.dtype, slope.grad.dtype) == (dtype, dtype, torch.float32)
    with torch.no_grad():
        expected = lma_oracle(*(tensor.double() for tensor in (x, slope, intercept, lower, step, grad)))
    eps = torch.finfo(dtype).eps
    for mine, reference in ((y, expected[0]), (x.grad, expected[1])):
        np.testing.assert_allclose(mine.detach().double().numpy(), reference, rtol=0.6 * eps, atol=1e-6)
    # the sums over elements are taken in float32
    np.testing.assert_allclose(slope.grad.double().numpy(), expected[2], rtol=1e-5, atol=1e-4)


def test_nan_and_infinity_follow_the_formula():
    slope, intercept, lower, step = tables(8)
    slope[0], slope[-1] = 0.5, -2.0
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.3], dtype=torch.float64, requires_grad=True)
    slope.requires_grad_()
    y = lma_hf.lma(x, slope, intercept, lower, step)
    y.backward(torch.ones_like(y))
    expected = lma_oracle([torch.nan, torch.inf, -torch.inf, 0.3], slope.detach(), intercept, lower, step, np.ones(4))
    np.testing.assert_array_equal(y.detach().numpy()[:3], [np.nan, -np.inf, -np.inf])
    np.testing.assert_allclose(y.detach().numpy()[3], expected[0][3])
    np.testing.assert_allclose(x.grad.numpy()[1:], expected[1][1:])
    np.testing.assert_allclose(slope.grad.numpy(), expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    slope, intercept, lower, step = (tensor.float() for tensor in tables(8, 6))
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(4)).to(dtype)
    plain = lma_hf.lma(x, slope, intercept, lower, step)
    with torch.autocast("cpu", torch.bfloat16):
        cast = lma_hf.lma(x, slope, intercept, lower, step)
    assert cast.dtype == dtype
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [None, 64])
def test_backward_keeps_one_tensor_of_the_size_of_x(dtype, channels):
    slope, intercept, lower, step = (tensor.float().requires_grad_() for tensor in tables(8, channels))
    x = torch.randn(256, 64).to(dtype).requires_grad_()
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lma_hf.lma(x, slope, intercept, lower, step).sum()
    tables_in_float64 = 8 * sum(tensor.numel() for tensor in (slope, intercept, lower, step))
    assert x.nbytes <= sum(saved.values()) <= x.nbytes + tables_in_float64


@pytest.mark.parametrize(
    ("x", "slope", "intercept", "named"),
    [
        ((2, 3), (4,), (5,), [r"\(4,\)", r"\(5,\)"]),
        ((2, 3), (3, 4), (4, 3), [r"\(3, 4\)", r"\(4, 3\)"]),
        ((2, 3), (), (), [r"\(\)"]),
        ((2, 3), (1, 3, 4), (1, 3, 4), [r"\(1, 3, 4\)"]),
        ((2, 3), (4, 8), (4, 8), [r"\(2, 3\)", "4 channels"]),
        ((), (4, 8), (4, 8), [r"shape \(\)", "4 channels"]),
    ],
)
def test_bad_shapes_are_named(x, slope, intercept, named):
    with pytest.raises(ValueError, match=".*".join(named)):
        lma_hf.lma(torch.zeros(x), torch.zeros(slope), torch.zeros(intercept), torch.tensor(0.0), torch.tensor(1.0))


@pytest.mark.parametrize("channels", [None, 3])
def test_gradcheck_between_knots(channels):
    slope, intercept, lower, step = tables(5, channels)
    share = 0.2 + 0.6 * torch.rand(8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = lower + step * (torch.arange(-1, 7)[:, None] + share)
    leaves = [tensor.requires_grad_() for tensor in (x, slope, intercept)]
    assert torch.autograd.gradcheck(lambda *inputs: lma_hf.lma(*inputs, lower, step), leaves)


@pytest.mark.parametrize("k", SEGMENTS)
@pytest.mark.parametrize("channels", [None, 3])
def test_lines_through_knots_interpolate(k, channels):
    height, _, lower, step = tables(k + 1, channels)
    generator = torch.Generator().manual_seed(6)
    x, grad = 2 * torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    x.requires_grad_(), height.requires_grad_()
    y = lma_hf.lma(x, *lines_through_knots(height, lower, step), lower, step)
    y.backward(grad)
    with torch.no_grad():
        expected = knots_oracle(x, height, lower, step, grad)
    for mine, reference in zip((y.detach(), x.grad, height.grad), expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), reference, rtol=1e-6, atol=1e-6)
