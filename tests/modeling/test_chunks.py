"""Working through a tensor piece by piece changes nothing but the rounding."""

import pytest
import torch

from lma_hf.modeling import statistics_lma
from lma_hf.modeling.reference_lma import lma
from lma_hf.modeling.statistics_lma import token_statistics


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(params=[1, 7, 64, 2**18])
def chunk(request, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(statistics_lma, "CHUNK", request.param)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics(chunk, masked, per_channel):
    x, mask = 5 + 2 * normal(3, 11, 8), torch.rand(3, 11) > 0.4
    real = x[mask] if masked else x.reshape(-1, 8)
    x[~mask if masked else torch.zeros_like(mask)] = torch.nan
    count, mean, m2 = token_statistics(x, mask if masked else None, per_channel)
    own = 0 if per_channel else (0, 1)
    torch.testing.assert_close(mean, real.mean(own))
    torch.testing.assert_close(m2, real.var(own, correction=0) * count)
    assert (count == (len(real) if per_channel else real.numel())).all()


@pytest.mark.parametrize("channels", [(), (8,)])
def test_function_and_gradients(chunk, channels):
    inputs = [tensor.requires_grad_() for tensor in (normal(33, 8), normal(*channels, 5), normal(*channels, 5))]
    lower, step = -1 - torch.rand(channels).double(), 0.2 + torch.rand(channels).double()
    x, slope, intercept = inputs
    index = ((x.detach() - lower) / step).floor().clamp(0, 4).long()
    pick = torch.nn.functional.one_hot(index, 5).double()
    plain = x * (pick * slope).sum(-1) + (pick * intercept).sum(-1)
    y, grad = lma(x, slope, intercept, lower, step), normal(33, 8)
    torch.testing.assert_close(y, plain)
    for mine, expected in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, expected)
