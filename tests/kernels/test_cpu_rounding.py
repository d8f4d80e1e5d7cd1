"""Half precision: what the C++ kernel loads and stores equals PyTorch's own conversion, bit for bit."""

import pytest
import torch
from kernel_problems import assert_same_bits, problem

pytestmark = pytest.mark.usefixtures("instruction_set")
HALVES = [torch.bfloat16, torch.float16]
OWN = pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])


def every_pattern(dtype):
    """All 65,536 numbers, in rows of 241 channels, which no vector width divides."""
    bits = torch.arange(2**16 + 16).to(torch.int16)
    return bits.view(dtype).reshape(-1, 241)


def line(slope, intercept, own, channels=241, k=8):
    """Tables of one line, by k pieces."""
    rows = (channels,) if own else ()
    bounds = torch.full(rows, -2.0), torch.full(rows, 0.5)
    return torch.full((*rows, k), slope), torch.full((*rows, k), intercept), *bounds


@OWN
@pytest.mark.parametrize("k", [8, 16, 33])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_identity_returns_every_number(dtype, k, own, cpu):
    x = every_pattern(dtype)
    # x + -0 keeps the sign of zeros
    assert_same_bits(cpu.lma(x, *line(1.0, -0.0, own, k=k)), x)


@OWN
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_identity_returns_every_number_beside_its_statistics(dtype, own, cpu):
    x = every_pattern(dtype)
    mask = torch.arange(len(x)) % 3 != 0
    assert_same_bits(cpu.lma_with_statistics(x, *line(1.0, -0.0, own), mask)[0], x)


@OWN
@pytest.mark.parametrize("parameters", [False, True], ids=["x only", "all"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_identity_returns_every_gradient(dtype, parameters, own, cpu):
    grad = every_pattern(dtype)
    slope, intercept, lower, step = line(1.0, 0.0, own)
    x = torch.zeros_like(grad).requires_grad_()
    cpu.lma(x, slope.requires_grad_(parameters), intercept, lower, step).backward(grad)
    assert_same_bits(x.grad, grad)


@OWN
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_ties_are_rounded_to_even(dtype, own, cpu):
    x = torch.arange(241, dtype=torch.float32).mul(torch.finfo(dtype).eps).add(1).to(dtype)[None]
    for quarters in range(1, 8):
        offset = quarters / 4 * torch.finfo(dtype).eps
        y = cpu.lma(x, *line(1.0, offset, own))
        assert_same_bits(y, (x.double() + offset).to(torch.float32).to(dtype))


@OWN
@pytest.mark.parametrize("factor", [1e-43, 1e-38, 1e-8, 1e-4, 1.0, 3e4, 3e37])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_the_float32_results_rounded_by_torch(dtype, factor, own, cpu):
    x, slope, intercept, lower, step, grad = problem((90, 241), 8, own, dtype)
    slope, intercept = slope * factor, intercept * factor
    y = cpu.lma(x, slope, intercept, lower, step)
    assert_same_bits(y, cpu.lma(x.float(), slope, intercept, lower, step).to(dtype))
    grads = []
    for value in (x.requires_grad_(), x.detach().float().requires_grad_()):
        cpu.lma(value, slope, intercept, lower, step).backward(grad.to(value.dtype))
        grads.append(value.grad)
    assert_same_bits(grads[0], grads[1].to(dtype))


@OWN
def test_float16_overflows_to_infinity_where_torch_does(own, cpu):
    x = torch.full((1, 241), 65504.0, dtype=torch.float16)
    for offset in (15.0, 15.9990234375, 16.0, 17.0, 1e30):
        assert_same_bits(cpu.lma(x, *line(1.0, offset, own)), (x.float() + offset).half())
        assert_same_bits(cpu.lma(-x, *line(1.0, -offset, own)), (-x.float() - offset).half())


@OWN
def test_bfloat16_overflows_to_infinity_where_torch_does(own, cpu):
    x = torch.full((1, 241), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    half_unit = 2.0**119
    for offset in (half_unit * 0.99, half_unit, half_unit * 1.01):
        assert_same_bits(cpu.lma(x, *line(1.0, offset, own)), (x.float() + offset).bfloat16())


@OWN
def test_flushing_denormals_leaves_the_subnormal_float16_alone(own, cpu):
    # they are ordinary numbers in float32
    x = torch.arange(1, 1025).to(torch.int16)[: 241 * 4].view(torch.float16).reshape(4, 241)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        y = cpu.lma(x, *line(1.0, -0.0, own))
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(y, x)
