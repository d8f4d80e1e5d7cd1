"""Inputs for LMA's kernels, their exact results in NumPy's float64, and how large an error may be.

A module beside tests/kernels and not in it: `kernels` is also the name of a package on PyPI.
"""

from typing import NamedTuple

import numpy as np
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEGMENTS = (2, 3, 8, 9, 16, 17, 33, 64)
# tails of every vector width, and 700 x 96: several blocks, worth two threads
SHAPES = [(1,), (7,), (1, 37), (17, 16), (2, 5, 7), (17, 300), (1000, 1), (1000, 7), (700, 96)]
RESULTS = ("y", "grad_x", "grad_slope", "grad_intercept")


class Problem(NamedTuple):
    """Arguments of lma, and dL/dy; slope and intercept are of shape (k,), or (channels, k)."""

    x: torch.Tensor
    slope: torch.Tensor
    intercept: torch.Tensor
    lower: torch.Tensor
    step: torch.Tensor
    grad: torch.Tensor


def problem(shape, k, own=False, dtype=torch.float32, seed=0):
    """A random problem with pieces of each channel's own, or shared ones. Its knots are no round numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows = (shape[-1],) if own else ()
    slope, intercept = torch.randn(2, *rows, k, generator=generator)
    lower = -1.5 - torch.rand(rows, generator=generator)
    step = (3 + torch.rand(rows, generator=generator)) / k
    x, grad = (2 * torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return Problem(x, slope, intercept, lower, step, grad)


def evaluate(lma, given):
    """The RESULTS by a function of x and the tables."""
    leaves = [tensor.detach().requires_grad_() for tensor in given[:3]]
    y = lma(*leaves, given.lower, given.step)
    y.backward(given.grad)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def segments(given):
    """Segment of every element, chosen in float32: who gets a value beside a knot is part of the definition."""
    x, lower, step = (tensor.float().numpy() for tensor in (given.x, given.lower, given.step))
    position = (x - lower) * (np.float32(1) / step)
    return np.clip(np.floor(position), 0, given.slope.shape[-1] - 1).astype(int)


def exact(given):
    """The RESULTS in float64, and for each the size of what is added up: errors are relative to that."""
    x, slope, intercept, grad = (
        tensor.double().numpy() for tensor in (given.x, given.slope, given.intercept, given.grad)
    )
    at = segments(given)
    if slope.ndim == 2:
        at = np.broadcast_to(np.arange(x.shape[-1]), x.shape), at
    lines = slope[at] * x, intercept[at]
    grad_x = slope[at] * grad
    addends = grad * x, grad
    values = sum(lines), grad_x, *(sums_over(values, at, slope.shape) for values in addends)
    sizes = sum(map(np.abs, lines)), np.abs(grad_x), *(sums_over(np.abs(v), at, slope.shape) for v in addends)
    return values, sizes


def sums_over(values, at, shape):
    """Sums of the values of each segment."""
    place = np.ravel_multi_index(at if isinstance(at, tuple) else (at,), shape)
    return np.bincount(place.ravel(), values.ravel(), np.prod(shape)).reshape(shape)


def largest_error(actual, expected, size):
    """Largest error in units of rounding (half an ulp) of `size`."""
    error = np.abs(actual.double().numpy() - expected) / np.maximum(size, np.finfo(np.float32).tiny)
    return error.max(initial=0) / (torch.finfo(actual.dtype).eps / 2)


def assert_exact_enough(reference, actual, given):
    """Errors are at most twice those of the reference, and one rounding."""
    for name, mine, theirs, value, size in zip(RESULTS, actual, reference, *exact(given), strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        assert largest_error(mine, value, size) <= 2 * largest_error(theirs, value, size) + 1, name


def assert_same_bits(actual, expected):
    """Equal in every bit, so -0 is not 0; a NaN is a NaN."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    integer = {2: torch.int16, 4: torch.int32}[actual.element_size()]
    same = actual.contiguous().view(integer) == expected.contiguous().view(integer)
    assert bool((same | (actual.isnan() & expected.isnan())).all())
