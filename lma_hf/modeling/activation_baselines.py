"""Learnable activations that LMA is compared with. (relu and gelu are transformers' own.)"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init


class Swish(nn.Module):
    """y = x * sigmoid(beta * x) with one learnable beta a unit (Ramachandran et al. 2017, arXiv 1710.05941).

    Args: num_channels: size of the input's last dimension.
    """

    def __init__(self, num_channels):
        super().__init__()
        self.beta = nn.Parameter(torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self):
        """Start as SiLU (beta 1)."""
        init.ones_(self.beta)

    def forward(self, x):
        return x * torch.sigmoid(self.beta.to(x.dtype) * x)


class GELUAffine(nn.Module):
    """y = scale * GELU(x) + shift with a learnable scale and shift a unit.

    Between two linear maps it computes nothing that GELU does not: the second map has room for both. So it is the
    control for what comes of activation parameters and their learning rate alone, not of another function.

    Args: num_channels: size of the input's last dimension.
    """

    def __init__(self, num_channels):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(num_channels))
        self.shift = nn.Parameter(torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self):
        """Start as GELU."""
        init.ones_(self.scale)
        init.zeros_(self.shift)

    def forward(self, x):
        return self.scale.to(x.dtype) * nn.functional.gelu(x) + self.shift.to(x.dtype)


class _APLUFunction(torch.autograd.Function):
    """Keeps only the input for backward; plain autograd would keep two tensors a hinge."""

    @staticmethod
    def forward(ctx, x, slope, hinge):
        ctx.save_for_backward(x, slope, hinge)
        y = x.clamp_min(0).to(slope.dtype)
        for a, b in zip(slope, hinge, strict=True):
            y += a * (b - x).clamp_min(0)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, slope, hinge = ctx.saved_tensors
        factor = (x > 0).to(slope.dtype)
        grad_slope, grad_hinge = torch.empty_like(slope), torch.empty_like(hinge)
        for i, (a, b) in enumerate(zip(slope, hinge, strict=True)):
            below = x < b
            factor -= a * below
            grad_slope[i] = (grad * (b - x) * below).sum_to_size(b.shape)
            grad_hinge[i] = (grad * a * below).sum_to_size(b.shape)
        return (grad * factor).to(x.dtype), grad_slope, grad_hinge


class APLU(nn.Module):
    """y = max(0, x) + sum over s of slope[s] * max(0, hinge[s] - x), per unit (Agostinelli et al. 2014, equation 1).

    Args: num_channels: size of the input's last dimension; num_hinges: S, the number of learnable hinges.
    """

    def __init__(self, num_channels, num_hinges=8):
        super().__init__()
        self.slope = nn.Parameter(torch.empty(num_hinges, num_channels))
        self.hinge = nn.Parameter(torch.empty(num_hinges, num_channels))
        self.reset_parameters()

    def reset_parameters(self):
        """Start as a ReLU, with the hinges spread evenly over -3 to 3."""
        init.zeros_(self.slope)
        start = torch.linspace(-3, 3, self.hinge.shape[0], device=self.hinge.device)
        init.copy_(self.hinge, start[:, None].expand_as(self.hinge))

    def forward(self, x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        return _APLUFunction.apply(x, self.slope.to(dtype), self.hinge.to(dtype))
