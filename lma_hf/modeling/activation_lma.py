"""Light Multi-segment Activation (Xu et al., AAAI 2020, arXiv 1907.06870): the function and the module."""

import math
from collections import deque
from dataclasses import asdict

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .configuration_lma import LMAConfig
from .statistics_lma import global_statistics, to_std, token_statistics


def segment_index(x, lower, step, num_segments):
    """Segment of every element: clamp(floor((x - lower) / step), 0, k - 1), as int32; NaN falls into any."""
    position = x.to(torch.promote_types(x.dtype, lower.dtype)).sub(lower).div_(step)
    # truncation is floor for what is not negative; NaN becomes some integer, which the second clamp catches
    return position.clamp_(0, num_segments - 1).to(torch.int32).clamp_(0, num_segments - 1)


def _table_index(x, lower, step, table):
    """Flat index of every element into `table` of shape (k,) or (channels, k)."""
    num_segments = table.shape[-1]
    index = segment_index(x, lower, step, num_segments)
    if table.dim() == 2:
        index += torch.arange(0, table.numel(), num_segments, dtype=torch.int32, device=x.device)
    return index.reshape(-1)


def _look_up(table, index, shape):
    return table.reshape(-1).index_select(0, index).view(shape)


def _segment_sums(values, index, table):
    """Sum of `values` over each segment. Channels are summed apart first, which keeps float32 sums short."""
    num_segments, channels = table.shape[-1], values.shape[-1]
    sums = values.new_zeros(channels * num_segments)
    if table.dim() == 1:
        offsets = torch.arange(0, sums.numel(), num_segments, dtype=torch.int32, device=values.device)
        index = (index.view(values.shape) + offsets).view(-1)
    sums.index_add_(0, index, values.reshape(-1))
    return sums.view(table.shape) if table.dim() == 2 else sums.view(channels, num_segments).sum(0)


class _LMAFunction(torch.autograd.Function):
    """Keeps only the input for backward, as GELU does; segments are computed again (authors' form keeps three)."""

    @staticmethod
    def forward(ctx, x, slope, intercept, lower, step):
        ctx.save_for_backward(x, slope, lower, step)
        index = _table_index(x, lower, step, slope)
        y = _look_up(slope, index, x.shape).mul(x).add_(_look_up(intercept, index, x.shape))
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, slope, lower, step = ctx.saved_tensors
        index = _table_index(x, lower, step, slope)
        grad_x = grad_slope = grad_intercept = None
        if ctx.needs_input_grad[0]:
            grad_x = _look_up(slope, index, x.shape).mul(grad).to(x.dtype)
        grad = grad.to(torch.promote_types(grad.dtype, slope.dtype))
        if ctx.needs_input_grad[1]:
            grad_slope = _segment_sums(grad * x, index, slope)
        if ctx.needs_input_grad[2]:
            grad_intercept = _segment_sums(grad, index, slope)
        return grad_x, grad_slope, grad_intercept, None, None


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
    if slope.shape != intercept.shape or slope.dim() not in (1, 2):
        raise ValueError(
            f"slope and intercept must share the shape (k,) or (channels, k), got {tuple(slope.shape)} "
            f"and {tuple(intercept.shape)}"
        )
    if slope.dim() == 2 and (x.dim() == 0 or x.shape[-1] != slope.shape[0]):
        raise ValueError(f"x has the shape {tuple(x.shape)}, its last dimension must be the {slope.shape[0]} channels")
    at_least_float32 = torch.promote_types(x.dtype, torch.float32)
    slope, intercept, lower, step = (
        tensor.to(torch.promote_types(tensor.dtype, at_least_float32)) for tensor in (slope, intercept, lower, step)
    )
    if x.dim() == 0:
        return lma(x[None], slope, intercept, lower, step)[0]
    return _LMAFunction.apply(x, slope, intercept, lower, step)


def lines_through_knots(height, lower, step):
    """Slope and intercept of the k lines through the k + 1 knots (lower + i * step, height[i]).

    Args: height: of shape (..., k + 1); lower, step: of shape height.shape[:-1].
    Returns: (slope, intercept), each of shape (..., k).
    """
    left = lower[..., None] + step[..., None] * torch.arange(height.shape[-1] - 1, device=height.device)
    slope = height.diff(dim=-1) / step[..., None]
    return slope, height[..., :-1] - slope * left


class LMA(nn.Module):
    """LMA as a layer, with the statistics that place its segments. See `LMAConfig` for the settings.

    Parameters `slope` and `intercept` are of shape (k,) or (num_channels, k); when continuous they are replaced by
    `height` with k + 1 entries. Buffers `running_mean`, `running_std` and `num_batches_tracked` are persistent.

    In training the statistics are those of the real tokens (`token_mask`) of the global batch over all processes.
    Evaluation uses the running statistics and never changes them.

    Args: num_channels: the units of the layer; needed if and only if `per_channel`.
    """

    def __init__(
        self,
        num_segments=8,
        range_sigmas=3.0,
        momentum=0.01,
        statistics="batch",
        init="relu",
        continuous=False,
        per_channel=False,
        *,
        num_channels=None,
    ):
        super().__init__()
        self.settings = LMAConfig(num_segments, range_sigmas, momentum, statistics, init, continuous, per_channel)
        if per_channel and num_channels is None:
            raise ValueError("per_channel=True needs num_channels, the number of units of the layer")
        shape = (num_channels,) if per_channel else ()
        if continuous:
            self.height = nn.Parameter(torch.empty(*shape, num_segments + 1))
        else:
            self.slope = nn.Parameter(torch.empty(*shape, num_segments))
            self.intercept = nn.Parameter(torch.empty(*shape, num_segments))
        self.register_buffer("running_mean", torch.empty(shape))
        self.register_buffer("running_std", torch.empty(shape))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.long))
        self.token_mask = None  # a TokenMask that the surrounding model fills in
        # What recent forward passes used, for gradient checkpointing's second run
        self._recent_bounds = deque(maxlen=64)
        self.reset_parameters()

    @classmethod
    def from_settings(cls, settings, num_channels=None):
        """An LMA module from an `LMAConfig`."""
        return cls(**asdict(settings), num_channels=num_channels if settings.per_channel else None)

    def reset_parameters(self):
        """The paper's start: statistics 0 and 1, the upper half of the slopes 1, all else 0.

        Tensors that transformers has just loaded are left alone (`transformers.initialization` checks that).
        """
        init.zeros_(self.running_mean)
        init.ones_(self.running_std)
        init.zeros_(self.num_batches_tracked)
        k = self.settings.num_segments
        if self.settings.continuous:
            init.copy_(self.height, self.relu_heights())
        else:
            start = (torch.arange(k, device=self.slope.device) >= k // 2).to(self.slope.dtype)
            init.copy_(self.slope, start.expand_as(self.slope))
            init.zeros_(self.intercept)

    @torch.no_grad()
    def relu_heights(self):
        """Knot heights of a ReLU hinged at the running mean."""
        lower, step = self.bounds(self.running_mean, self.running_std)
        index = torch.arange(self.settings.num_segments + 1, device=lower.device)
        return (lower[..., None] + step[..., None] * index) * (index > self.settings.num_segments // 2)

    def forward(self, x):
        lower, step = self.bounds(*self._statistics_for(x))
        slope, intercept = self.lines(lower, step)
        return lma(x, slope, intercept, lower, step)

    def bounds(self, mean, std):
        """Lower end and width of the segments; a constant input (std 0) still gets a positive width."""
        reach = self.settings.range_sigmas * std.clamp_min(1e-6)
        return mean - reach, 2 * reach / self.settings.num_segments

    def lines(self, lower, step):
        """Slope and intercept of every piece, whichever way they are parametrised."""
        if self.settings.continuous:
            return lines_through_knots(self.height, lower, step)
        return self.slope, self.intercept

    def _statistics_for(self, x):
        """Mean and standard deviation that place the segments for this input; updates the running ones."""
        if not self.training or self.settings.statistics == "frozen":
            return self.running_mean, self.running_std
        if _in_backward():
            return self._recall(x)
        batch_mean, batch_std = self._batch_statistics(x)
        used = batch_mean, batch_std
        if self.settings.statistics == "running":
            first = self.num_batches_tracked == 0
            used = (
                torch.where(first, batch_mean, self.running_mean),
                torch.where(first, batch_std, self.running_std),
            )
        self._recent_bounds.append([_fingerprint(x), *used, False])
        self._update_running(batch_mean, batch_std)
        return used

    @torch.no_grad()
    def _batch_statistics(self, x):
        mask = self.token_mask.value if self.token_mask is not None else None
        count, mean, m2 = global_statistics(*token_statistics(x, mask, self.settings.per_channel))
        # a batch without a real token says nothing
        empty = count == 0
        return torch.where(empty, self.running_mean, mean), torch.where(empty, self.running_std, to_std(count, m2))

    @torch.no_grad()
    def _update_running(self, mean, std):
        """Exponential moving average with Adam's bias correction, so that the first updates are not pulled to 0."""
        self.num_batches_tracked += 1
        momentum, dtype = self.settings.momentum, self.running_mean.dtype
        log_decay = math.log1p(-momentum) if momentum < 1 else -math.inf
        # expm1 keeps the digits that 1 - decay ** n loses, so that the first weight is 1
        updates = self.num_batches_tracked.to(torch.promote_types(dtype, torch.float32))
        weight = (momentum / -torch.expm1(updates * log_decay)).to(dtype)
        self.running_mean.lerp_(mean.to(dtype), weight)
        self.running_std.lerp_(std.to(dtype), weight)

    def _recall(self, x):
        """Statistics of the forward pass that gradient checkpointing is running again, found by its input."""
        if not self._recent_bounds:
            raise RuntimeError("LMA runs inside a backward pass without a forward pass before it")
        mine = _fingerprint(x)
        candidates = [entry for entry in self._recent_bounds if entry[0].shape == mine.shape]
        # backward goes from the last pass to the first, so equal inputs are told apart by what was recalled before
        best = min(reversed(candidates), key=lambda entry: ((entry[0] - mine).abs().sum().item(), entry[3]))
        best[3] = True
        return best[1], best[2]

    def extra_repr(self):
        return ", ".join(f"{key}={value}" for key, value in asdict(self.settings).items())


def _in_backward():
    """Whether autograd is running, that is, whether this forward is gradient checkpointing's second one."""
    return torch._C._current_graph_task_id() != -1


def _fingerprint(x, samples=64):
    """A few elements spread over `x`, enough to know it again; float32."""
    flat = x.detach().reshape(-1)
    # an odd stride does not stay in one channel
    return flat[:: flat.numel() // samples | 1][:samples].float().clone()
