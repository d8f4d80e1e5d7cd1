"""LMA written out element by element in plain Python floats (float64); shares no code with lma_hf."""

import itertools
import math

import numpy as np


def segment_of(value, lower, step, k):
    position = (value - lower) / step
    if math.isnan(position):
        return 0
    if math.isinf(position):
        return 0 if position < 0 else k - 1
    return min(max(math.floor(position), 0), k - 1)


def lma_oracle(x, slope, intercept, lower, step, grad):
    """y, dL/dx, dL/dslope and dL/dintercept, for grad = dL/dy; all as float64 arrays.

    Tables are of shape (k,) with scalar lower and step, or (channels, k) with lower and step of shape (channels,).
    """
    x, slope, intercept, lower, step, grad = (
        np.asarray(value, dtype=np.float64) for value in (x, slope, intercept, lower, step, grad)
    )
    y, grad_x = np.zeros(x.shape), np.zeros(x.shape)
    grad_slope, grad_intercept = np.zeros(slope.shape), np.zeros(slope.shape)
    for at in np.ndindex(*x.shape):
        row = (at[-1],) if slope.ndim == 2 else ()
        entry = (*row, segment_of(float(x[at]), float(lower[row]), float(step[row]), slope.shape[-1]))
        y[at] = slope[entry] * x[at] + intercept[entry]
        grad_x[at] = slope[entry] * grad[at]
        grad_slope[entry] += grad[at] * x[at]
        grad_intercept[entry] += grad[at]
    return y, grad_x, grad_slope, grad_intercept


def knots_oracle(x, height, lower, step, grad):
    """y, dL/dx and dL/dheight of linear interpolation between knots; the end pieces go on straight."""
    x, height, lower, step, grad = (np.asarray(value, dtype=np.float64) for value in (x, height, lower, step, grad))
    y, grad_x, grad_height = np.zeros(x.shape), np.zeros(x.shape), np.zeros(height.shape)
    for at in np.ndindex(*x.shape):
        row = (at[-1],) if height.ndim == 2 else ()
        left = segment_of(float(x[at]), float(lower[row]), float(step[row]), height.shape[-1] - 1)
        share = (x[at] - lower[row]) / step[row] - left
        low, high = (*row, left), (*row, left + 1)
        y[at] = (1 - share) * height[low] + share * height[high]
        grad_x[at] = grad[at] * (height[high] - height[low]) / step[row]
        grad_height[low] += grad[at] * (1 - share)
        grad_height[high] += grad[at] * share
    return y, grad_x, grad_height


def statistics_oracle(x, per_channel, mask=None):
    """Mean and population standard deviation over the rows where `mask` is nonzero, in two passes."""
    x = np.asarray(x, dtype=np.float64)
    rows = x.reshape(-1, x.shape[-1])
    if mask is not None:
        rows = rows[np.asarray(mask).reshape(-1) != 0]
    axis = 0 if per_channel else None
    mean = rows.mean(axis)
    return mean, np.sqrt(((rows - mean) ** 2).mean(axis))


def ema_oracle(values, momentum):
    """Exponential moving average of `values` with decay 1 - momentum, divided by its total weight."""
    weights = [momentum * (1 - momentum) ** age for age in reversed(range(len(values)))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def variants():
    """Keyword arguments of every LMA variant: statistics x init x continuous x per_channel."""
    keys = ("statistics", "init", "continuous", "per_channel")
    choices = (("batch", "running", "frozen"), ("relu", "fit"), (False, True), (False, True))
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]
