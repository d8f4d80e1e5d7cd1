from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.activations import ACT2CLS

from lma_hf import LMA
from lma_hf.surgery.fit import TAIL_SIGMAS, fit_to_replaced_

POINTS = 4000  # a segment, of the oracle's grid
ACTIVATIONS = {"gelu": nn.GELU, "gelu_new": ACT2CLS["gelu_new"], "silu": nn.SiLU, "tanh": nn.Tanh}


def fitted(activation, mean, std, **arguments):
    """An LMA with the given running statistics, fitted to `activation`."""
    module = LMA(init="fit", **arguments).eval()
    module.running_mean.copy_(torch.as_tensor(mean))
    module.running_std.copy_(torch.as_tensor(std))
    module.__dict__["replaced"] = activation
    fit_to_replaced_(module, "activation")
    return module


def dense_grid(k, mean, std, range_sigmas):
    """Midpoints (k, POINTS) of every segment, normal weights; the outermost segments reach TAIL_SIGMAS further."""
    knots = mean + std * range_sigmas * np.linspace(-1, 1, k + 1)
    edges = knots.copy()
    edges[0] -= TAIL_SIGMAS * std
    edges[-1] += TAIL_SIGMAS * std
    share = (np.arange(POINTS) + 0.5) / POINTS
    x = edges[:-1, None] + np.diff(edges)[:, None] * share
    return knots, x, np.exp(-0.5 * ((x - mean) / std) ** 2) * np.diff(edges)[:, None]


def value(activation, x):
    return activation(torch.from_numpy(x)).numpy()


def error(module, x, target, weight):
    """Weighted mean squared error of a module over a grid."""
    with torch.no_grad():
        y = module(torch.from_numpy(x).flatten()[:, None]).numpy().reshape(x.shape)
    return (weight * (y - target) ** 2).sum() / weight.sum()


cases = given(
    name=st.sampled_from(sorted(ACTIVATIONS)),
    mean=st.floats(-2, 2),
    std=st.floats(0.2, 2),
    k=st.sampled_from([2, 5, 8, 16]),
    range_sigmas=st.sampled_from([2.0, 3.0]),
)


@cases
@settings(max_examples=25, deadline=None)
def test_every_piece_is_the_weighted_least_squares_line(name, mean, std, k, range_sigmas):
    activation = ACTIVATIONS[name]()
    module = fitted(activation, mean, std, num_segments=k, range_sigmas=range_sigmas)
    _, x, weight = dense_grid(k, mean, std, range_sigmas)
    for i in range(k):
        slope, intercept = np.polyfit(x[i], value(activation, x[i]), 1, w=np.sqrt(weight[i]))
        difference = (module.slope[i].item() - slope) * x[i] + module.intercept[i].item() - intercept
        # measured: the module's coarser grid costs up to 5.4e-4 deviations of the input
        assert np.sqrt(np.average(difference**2, weights=weight[i])) < 1e-3 * std


@cases
@settings(max_examples=25, deadline=None)
def test_heights_of_a_continuous_fit_are_the_weighted_least_squares_solution(name, mean, std, k, range_sigmas):
    activation = ACTIVATIONS[name]()
    module = fitted(activation, mean, std, num_segments=k, range_sigmas=range_sigmas, continuous=True)
    knots, x, weight = dense_grid(k, mean, std, range_sigmas)
    flat = x.ravel()
    # hat functions that go on straight beyond the range, each interpolated from its values at stretched knots
    stretched = np.concatenate([[2 * knots[0] - knots[1] - 9 * std], knots, [2 * knots[-1] - knots[-2] + 9 * std]])
    design = np.empty((flat.size, k + 1))
    for i, hat in enumerate(np.eye(k + 1)):
        step = knots[1] - knots[0]
        left = hat[0] + (stretched[0] - knots[0]) / step * (hat[1] - hat[0])
        right = hat[-1] + (stretched[-1] - knots[-1]) / step * (hat[-1] - hat[-2])
        design[:, i] = np.interp(flat, stretched, np.concatenate([[left], hat, [right]]))
    root = np.sqrt(weight.ravel())
    heights = np.linalg.lstsq(design * root[:, None], value(activation, flat) * root, rcond=None)[0]
    np.testing.assert_allclose(module.height.detach().numpy(), heights, rtol=0, atol=5e-3 * std)


@pytest.mark.parametrize("continuous", [False, True])
def test_more_segments_fit_better(continuous):
    errors = []
    for k in (2, 4, 8, 16, 32):
        module = fitted(nn.GELU(), 0.3, 1.2, num_segments=k, continuous=continuous).double()
        _, x, weight = dense_grid(64, 0.3, 1.2, 3.0)
        errors.append(error(module, x, value(nn.GELU(), x), weight))
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("continuous", [False, True])
@given(std=st.floats(0.01, 100), k=st.sampled_from([2, 4, 8, 64]), reach=st.floats(0.5, 8))
@settings(max_examples=20, deadline=None)
def test_relu_with_a_knot_at_0_is_met_exactly(continuous, std, k, reach):
    module = fitted(nn.ReLU(), 0.0, std, num_segments=k, continuous=continuous, range_sigmas=reach)
    x = torch.linspace(-10 * std, 10 * std, 501)[:, None]
    torch.testing.assert_close(module(x), x.relu(), rtol=1e-4, atol=1e-5 * std)


@pytest.mark.parametrize("continuous", [False, True])
def test_every_channel_is_fitted_at_its_own_statistics(continuous):
    mean, std = [-1.0, 0.0, 2.0], [0.3, 1.0, 2.5]
    module = fitted(nn.GELU(), mean, std, continuous=continuous, per_channel=True, num_channels=3)
    for i in range(3):
        alone = fitted(nn.GELU(), mean[i], std[i], continuous=continuous)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(getattr(module, name)[i], parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(("std", "range_sigmas"), [(0.0, 3.0), (1.0, 60.0)])
def test_constant_inputs_and_far_tails_give_finite_pieces(continuous, std, range_sigmas):
    module = fitted(nn.GELU(), 0.5, std, continuous=continuous, range_sigmas=range_sigmas)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    torch.testing.assert_close(
        module(torch.tensor([0.5])), nn.GELU()(torch.tensor([0.5])), rtol=0, atol=1.0 * std + 1e-3
    )
