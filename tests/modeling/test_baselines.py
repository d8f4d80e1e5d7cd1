"""Swish, APLU, PReLU and GELU with scale and shift against element-by-element float64 oracles."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import lma_hf
from lma_hf.modeling.activation_baselines import APLU, GELUAffine, Swish
from lma_hf.modeling.modeling_lma import build_activation

CHANNELS, HINGES = 5, 4
SHAPES = [(CHANNELS,), (7, CHANNELS), (2, 3, CHANNELS), (0, CHANNELS)]


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def inputs(*shape, seed=1):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module, x, grad):
    """y, dL/dx and the gradients of the parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(grad)
    return [tensor.detach().numpy() for tensor in (y, x.grad, *(p.grad for p in module.parameters()))]


def swish_oracle(x, grad, beta):
    y, grad_x, grad_beta = np.zeros(x.shape), np.zeros(x.shape), np.zeros(beta.shape)
    for at in np.ndindex(*x.shape):
        value, b = x[at], beta[at[-1]]
        gate = 1 / (1 + math.exp(-b * value))
        y[at] = value * gate
        grad_x[at] = grad[at] * (gate + b * value * gate * (1 - gate))
        grad_beta[at[-1]] += grad[at] * value**2 * gate * (1 - gate)
    return y, grad_x, grad_beta


def gelu_affine_oracle(x, grad, scale, shift):
    y, grad_x = np.zeros(x.shape), np.zeros(x.shape)
    grad_scale, grad_shift = np.zeros(scale.shape), np.zeros(shift.shape)
    for at in np.ndindex(*x.shape):
        value, unit = x[at], at[-1]
        below, density = 0.5 * math.erfc(-value / math.sqrt(2)), math.exp(-0.5 * value**2) / math.sqrt(2 * math.pi)
        y[at] = scale[unit] * value * below + shift[unit]
        grad_x[at] = grad[at] * scale[unit] * (below + value * density)
        grad_scale[unit] += grad[at] * value * below
        grad_shift[unit] += grad[at]
    return y, grad_x, grad_scale, grad_shift


def aplu_oracle(x, grad, slope, hinge):
    y, grad_x = np.zeros(x.shape), np.zeros(x.shape)
    grad_slope, grad_hinge = np.zeros(slope.shape), np.zeros(hinge.shape)
    for at in np.ndindex(*x.shape):
        y[at], grad_x[at] = max(0.0, x[at]), grad[at] * (x[at] > 0)
        for s in range(len(slope)):
            entry = (s, at[-1])
            if x[at] < hinge[entry]:
                y[at] += slope[entry] * (hinge[entry] - x[at])
                grad_x[at] -= grad[at] * slope[entry]
                grad_slope[entry] += grad[at] * (hinge[entry] - x[at])
                grad_hinge[entry] += grad[at] * slope[entry]
    return y, grad_x, grad_slope, grad_hinge


def prelu_oracle(x, grad, weight):
    below = x < 0
    return np.where(below, weight * x, x), np.where(below, weight, 1) * grad, np.array([(grad * x)[below].sum()])


ORACLES = {
    "swish": (lambda: Swish(CHANNELS), swish_oracle),
    "aplu": (lambda: APLU(CHANNELS, HINGES), aplu_oracle),
    "gelu_affine": (lambda: GELUAffine(CHANNELS), gelu_affine_oracle),
    "prelu": (lambda: build_activation(lma_hf.BaselineConfig("prelu")), prelu_oracle),
}
every_baseline = pytest.mark.parametrize("name", ORACLES)


@every_baseline
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_equal_the_oracle(name, shape):
    build, oracle = ORACLES[name]
    module, x, grad = randomised(build()), inputs(*shape), inputs(*shape, seed=2)
    parameters = [parameter.detach().numpy() for parameter in module.parameters()]
    for mine, expected in zip(gradients(module, x, grad), oracle(x.numpy(), grad.numpy(), *parameters), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)


@every_baseline
def test_views_equal_contiguous_input(name):
    module, base, grad = randomised(ORACLES[name][0]()), inputs(CHANNELS, 3, 4), inputs(4, 3, CHANNELS, seed=2)
    of_view = gradients(module, base.permute(2, 1, 0), grad)
    module.zero_grad()
    for mine, expected in zip(of_view, gradients(module, base.permute(2, 1, 0).contiguous(), grad), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-12)


@every_baseline
def test_gradcheck(name):
    module = randomised(ORACLES[name][0]())
    # random values stay away from the hinges by more than gradcheck's step
    assert torch.autograd.gradcheck(
        lambda x, *parameters: torch.func.functional_call(
            module, dict(zip(dict(module.named_parameters()), parameters, strict=True)), x
        ),
        [inputs(3, CHANNELS).requires_grad_(), *module.parameters()],
    )


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("relu", torch.relu),
        ("gelu", nn.functional.gelu),
        ("gelu_affine", nn.functional.gelu),
        ("prelu", lambda x: nn.functional.leaky_relu(x, 0.25)),
        ("swish", nn.functional.silu),
        ("aplu", torch.relu),
    ],
)
def test_initial_values(name, reference):
    module = build_activation(lma_hf.BaselineConfig(name), CHANNELS)
    x = torch.linspace(-6, 6, 25)[:, None].expand(-1, CHANNELS)
    torch.testing.assert_close(module(x), reference(x))


def test_aplu_hinges_start_spread_over_three():
    hinge = APLU(CHANNELS, 7).hinge
    assert hinge.tolist() == [[value] * CHANNELS for value in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)]


def test_aplu_keeps_one_tensor_of_the_size_of_x():
    x, kept = inputs(256, CHANNELS).requires_grad_(), []
    module = APLU(CHANNELS, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()] == [x.data_ptr()]


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "gelu_affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_and_gradient_keep_the_dtype_of_the_input(name, dtype):
    module = ORACLES[name][0]()
    if name == "prelu":
        module.to(dtype)
    x = inputs(20, CHANNELS).to(dtype).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    expected = module.double()(x.detach().double())
    torch.testing.assert_close(y.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gelu_affine_starts_as_pytorchs_gelu_to_the_bit(dtype):
    """Whose own error in the left tail is above what the test before allows."""
    x = inputs(20, CHANNELS).to(dtype).requires_grad_()
    y, expected = GELUAffine(CHANNELS)(x), nn.functional.gelu(x)
    assert torch.equal(y, expected)
    assert y.dtype == dtype
    (mine,), (theirs,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["swish", "aplu", "gelu_affine"])
def test_parameters_for_each_unit_need_the_number_of_units(name):
    with pytest.raises(ValueError, match=rf"{name} .* num_channels"):
        build_activation(lma_hf.BaselineConfig(name))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("swich",), ["'swich'", "relu, gelu, gelu_affine, prelu, swish, aplu", "did you mean 'swish'"]),
        (("lma",), ["'lma'", "allowed are"]),
        (("aplu", 1), ["num_segments is 1", "2 to 64"]),
    ],
)
def test_bad_settings_name_the_value_and_what_is_allowed(arguments, named):
    with pytest.raises(ValueError, match="allowed are") as error:
        lma_hf.BaselineConfig(*arguments)
    assert all(part in str(error.value) for part in named)
