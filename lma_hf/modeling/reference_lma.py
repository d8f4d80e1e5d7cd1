"""LMA as a function of tensors, made of PyTorch operators: what every faster kernel is measured against.

`lma_hf.kernels` has faster versions of the three functions in `Kernels`; `import lma_hf` puts them in place.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .statistics_lma import chunks, token_statistics


def segment_index(x, lower, step, num_segments):
    """Segment of every element: clamp(floor((x - lower) / step), 0, k - 1), as int64; NaN falls into any."""
    position = x.to(torch.promote_types(x.dtype, lower.dtype)).sub(lower).mul_(step.reciprocal())
    # truncation is floor for what is not negative; NaN becomes some integer, which the second clamp catches
    return position.clamp_(0, num_segments - 1).int().clamp_(0, num_segments - 1).long()


def _look_up(table, index, out=None):
    """Entry of `table`, (k,) or (channels, k), for every index of shape (rows, channels); into `out` if possible."""
    out = out if out is not None and out.dtype == table.dtype else None
    if table.dim() == 1:
        return torch.gather(table.expand(index.shape[0], -1), 1, index, out=out)
    return torch.gather(table.t(), 0, index, out=out)


def lma_forward(x, slope, intercept, lower, step):
    """`lma` without its checks and its derivative; all tables are at least float32."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part, result in chunks(x, y):
        index = segment_index(part, lower, step, slope.shape[-1])
        values = _look_up(intercept, index, out=result).addcmul_(_look_up(slope, index), part)
        if values is not result:
            result.copy_(values)
    return y


def lma_backward(grad, x, slope, lower, step, parameters):
    """dL/dx, dL/dslope and dL/dintercept; the latter two are zero where `parameters` is false."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    sums = [torch.zeros_like(slope), torch.zeros_like(slope)]
    for part_grad, part, result in chunks(grad, x, grad_x):
        index = segment_index(part, lower, step, slope.shape[-1])
        values = _look_up(slope, index, out=result).mul_(part_grad)
        if values is not result:
            result.copy_(values)
        if parameters:
            for total, addend in zip(sums, _segment_sums(part_grad.to(slope.dtype), part, index, slope), strict=True):
                total += addend
    return grad_x, *sums


def _segment_sums(grad, x, index, table):
    """Sums of grad * x and of grad over each segment. Rows are summed apart first, which keeps float32 sums short."""
    if table.dim() == 2:
        zeros = grad.new_zeros(table.shape[1], table.shape[0])
        return zeros.scatter_add(0, index, grad * x).t(), zeros.scatter_add(0, index, grad).t()
    zeros = grad.new_zeros(index.shape[0], table.shape[0])
    if torch.compiler.is_compiling() or grad.device.type != "cpu":
        return zeros.scatter_add(1, index, grad * x).sum(0), zeros.scatter_add(1, index, grad).sum(0)
    # both at once as one complex number, which halves the wait for the sum before (4096 x 1536: 28 ms -> 20 ms)
    pairs = torch.complex(zeros, zeros).scatter_add_(1, index, torch.complex(grad * x, grad)).sum(0)
    return pairs.real, pairs.imag


class _LMAFunction(torch.autograd.Function):
    """Keeps only the input for backward, as GELU does; segments are computed again (authors' form keeps three)."""

    @staticmethod
    def forward(ctx, x, slope, intercept, lower, step):
        ctx.save_for_backward(x, slope, lower, step)
        return lma_forward(x, slope, intercept, lower, step)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs_x, *needs_tables = ctx.needs_input_grad[:3]
        grad_x, *grads = lma_backward(grad, *ctx.saved_tensors, any(needs_tables))
        grads = (each if needed else None for each, needed in zip(grads, needs_tables, strict=True))
        return grad_x if needs_x else None, *grads, None, None


def check_shapes(x, slope, intercept):
    """Raises: ValueError if the tables do not fit each other or x."""
    if slope.shape != intercept.shape or slope.dim() not in (1, 2):
        raise ValueError(
            f"slope and intercept must share the shape (k,) or (channels, k), got {tuple(slope.shape)} "
            f"and {tuple(intercept.shape)}"
        )
    if slope.dim() == 2 and (x.dim() == 0 or x.shape[-1] != slope.shape[0]):
        raise ValueError(f"x has the shape {tuple(x.shape)}, its last dimension must be the {slope.shape[0]} channels")


def lma(x, slope, intercept, lower, step):
    """Piecewise linear y = slope[i] * x + intercept[i] with i = clamp(floor((x - lower) / step), 0, k - 1).

    The bounds are not differentiated through; the outermost segments extend to infinity (paper, section 3).

    Args:
        x: of shape (..., channels), any floating dtype; computed in at least float32.
        slope, intercept: of shape (k,), or (channels, k) for own pieces a channel.
        lower: where segment 0 would begin if it did not extend to minus infinity, of shape () or (channels,).
        step: width of a segment, > 0, of the shape of `lower`.
    Returns: y of the shape and dtype of x.
    Raises: ValueError if the shapes do not fit.
    """
    check_shapes(x, slope, intercept)
    at_least_float32 = torch.promote_types(x.dtype, torch.float32)
    slope, intercept, lower, step = (
        tensor.to(torch.promote_types(tensor.dtype, at_least_float32)) for tensor in (slope, intercept, lower, step)
    )
    if x.dim() == 0:
        return lma(x[None], slope, intercept, lower, step)[0]
    return _LMAFunction.apply(x, slope, intercept, lower, step)


def lma_with_statistics(x, slope, intercept, lower, step, mask=None):
    """`lma`, and the `token_statistics` of x (of each channel where the tables are per channel) on the way.

    Args: mask: of shape x.shape[:-1], nonzero at real tokens; None counts every row. The others as for `lma`.
    Returns: (y, count, mean, m2).
    """
    return lma(x, slope, intercept, lower, step), *token_statistics(x, mask, slope.dim() == 2)


class Kernels(NamedTuple):
    """The functions that do LMA's work, by one implementation."""

    name: str
    lma: Callable
    lma_with_statistics: Callable
    token_statistics: Callable


REFERENCE = Kernels("reference", lma, lma_with_statistics, token_statistics)
_choose = None


def use_kernels(choose):
    """Let `choose(x, num_segments)` -> `Kernels` decide who computes; a pushed model without lma_hf has no choice."""
    global _choose
    _choose = choose


def kernels_for(x, num_segments):
    """The `Kernels` for an input and a number of segments."""
    return REFERENCE if _choose is None else _choose(x, num_segments)
