"""Light Multi-segment Activation (Xu et al., AAAI 2020, arXiv 1907.06870) as a module."""

import math
from collections import deque
from dataclasses import asdict

import torch
from torch import nn
from transformers import initialization as init

from .configuration_lma import LMAConfig
from .reference_lma import kernels_for, lma
from .statistics_lma import global_statistics, merge_statistics, to_std

# Forward passes of one module that gradient checkpointing can run again
RECENT_PASSES = 64

__all__ = ["LMA", "FoldedLMA", "lines_through_knots", "lma"]


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
        # Whether num_batches_tracked is known to be above 0; asking a GPU would make it wait
        self._has_statistics = False
        # What recent forward passes used, for gradient checkpointing's second run
        self._recent_bounds = deque(maxlen=RECENT_PASSES)
        # What running statistics of half precision are rounded from
        self._unrounded = {}
        # What was seen since `hold_statistics`; None: the running statistics follow at once
        self._held = None
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
        self._has_statistics = False
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
        kernels = kernels_for(x, self.settings.num_segments)
        if self._places_by_running_statistics():
            return self._forward_and_track(x, kernels)
        lower, step = self.bounds(*self._statistics_for(x, kernels))
        return kernels.lma(x, *self.lines(lower, step), lower, step)

    def _forward_and_track(self, x, kernels):
        """Segments from the running statistics; the batch's own are taken in the same pass over x."""
        used = self.running_mean.clone(), self.running_std.clone()
        lower, step = self.bounds(*used)
        y, *statistics = kernels.lma_with_statistics(x, *self.lines(lower, step), lower, step, self._mask())
        self._remember(x, used)
        self._track(*global_statistics(*statistics))
        return y

    def _places_by_running_statistics(self):
        """Whether this is a training pass that needs nothing of the batch to place the segments."""
        if not self.training or self.settings.statistics != "running" or torch.compiler.is_compiling():
            return False
        if not self._has_statistics:
            self._has_statistics = bool(self.num_batches_tracked > 0)
        return self._has_statistics and not _in_backward()

    def bounds(self, mean, std):
        """Lower end and width of the segments; a constant input (std 0) still gets a positive width."""
        k = self.settings.num_segments
        step = std.clamp_min(1e-6) * (2 * self.settings.range_sigmas / k)
        return torch.sub(mean, step, alpha=k / 2), step

    def lines(self, lower, step):
        """Slope and intercept of every piece, whichever way they are parametrised."""
        if self.settings.continuous:
            return lines_through_knots(self.height, lower, step)
        return self.slope, self.intercept

    def _statistics_for(self, x, kernels):
        """Mean and standard deviation that place the segments for this input; updates the running ones."""
        if not self.training or self.settings.statistics == "frozen":
            return self.running_mean, self.running_std
        if _in_backward():
            return self._recall(x)
        seen = global_statistics(*kernels.token_statistics(x, self._mask(), self.settings.per_channel))
        used = batch = self._mean_and_std(*seen)
        if self.settings.statistics == "running":
            first = self.num_batches_tracked == 0
            running = self.running_mean, self.running_std
            used = tuple(torch.where(first, new, old) for new, old in zip(batch, running, strict=True))
        self._remember(x, used)
        self._track(*seen)
        return used

    def _mask(self):
        return self.token_mask.value if self.token_mask is not None else None

    def hold_statistics(self):
        """From now on only collect, until `release_statistics`; see `modeling_lma.one_statistics_update`."""
        self._held = []

    def release_statistics(self):
        """Move the running statistics once, by all that was seen since `hold_statistics`."""
        held, self._held = self._held, None
        if held:
            # a merge of one would be rounded
            self._track(*(held[0] if len(held) == 1 else merge_statistics(*map(torch.stack, zip(*held, strict=True)))))

    def _track(self, *seen):
        if self._held is None:
            self._update_running(*self._mean_and_std(*seen))
        else:
            self._held.append(seen)

    @torch.no_grad()
    def _mean_and_std(self, count, mean, m2):
        # a batch without a real token says nothing
        empty = count == 0
        return torch.where(empty, self.running_mean, mean), torch.where(empty, self.running_std, to_std(count, m2))

    @torch.no_grad()
    def _update_running(self, mean, std):
        """Exponential moving average with Adam's bias correction, so that the first updates are not pulled to 0."""
        self.num_batches_tracked += 1
        momentum, dtype = self.settings.momentum, torch.promote_types(self.running_mean.dtype, torch.float32)
        log_decay = math.log1p(-momentum) if momentum < 1 else -math.inf
        # expm1 keeps the digits that 1 - decay ** n loses, so that the first weight is 1
        weight = momentum / -torch.expm1(self.num_batches_tracked.to(dtype) * log_decay)
        for name, value in (("running_mean", mean), ("running_std", std)):
            self._move(name, value.to(dtype), weight)

    def _move(self, name, value, weight):
        """One step of a running statistic; in half precision a step may be too small to be seen, but not their sum."""
        running = getattr(self, name)
        if running.dtype == value.dtype:
            running.lerp_(value, weight)
            return
        before = self._unrounded.get(name, running).to(running.device)
        # not where the statistic has been set since
        before = torch.where(before.to(running.dtype) == running, before.to(value.dtype), running.to(value.dtype))
        self._unrounded[name] = before.lerp(value, weight)
        running.copy_(self._unrounded[name])

    def _remember(self, x, used):
        # a compiled graph does not run twice
        if not torch.compiler.is_compiling():
            self._recent_bounds.append([_fingerprint(x), *used, False])

    def _recall(self, x):
        """Statistics of the forward pass that gradient checkpointing is running again, found by its input."""
        mine = _fingerprint(x)

        def distance(entry):
            return (entry[0] - mine).abs().sum().item()

        candidates = [entry for entry in self._recent_bounds if entry[0].shape == mine.shape]
        # backward goes from the last pass to the first, so equal inputs are told apart by what was recalled before
        best = min(reversed(candidates), key=lambda entry: (distance(entry), entry[3]), default=None)
        # a GPU may sum in another order the second time; another input is far away
        rounding = max(4 * torch.finfo(x.dtype).eps, 1e-3) * mine.abs().sum().item()
        if best is None or distance(best) > rounding:
            raise RuntimeError(
                f"LMA runs again inside a backward pass, with an input that none of its last {RECENT_PASSES} forward "
                "passes had; call backward after fewer passes, and checkpoint with preserve_rng_state=True"
            )
        best[3] = True
        return best[1], best[2]

    def _replicate_for_data_parallel(self):
        # replicas would share what is remembered of the passes, and each have statistics of its own
        if self.training:
            raise RuntimeError(
                "LMA cannot train in torch.nn.DataParallel, allowed is one process for each GPU; start it with "
                "accelerate launch or torchrun"
            )
        return super()._replicate_for_data_parallel()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._has_statistics = False

    def extra_repr(self):
        return ", ".join(f"{key}={value}" for key, value in asdict(self.settings).items())


class FoldedLMA(nn.Module):
    """What an LMA computes in evaluation, with nothing left to learn: buffers slope, intercept, lower and step.

    Args: slope, intercept, lower, step: as `lma` takes them. range_sigmas: of the LMA.
    """

    def __init__(self, slope, intercept, lower, step, range_sigmas):
        super().__init__()
        self.range_sigmas = range_sigmas
        for name, value in {"slope": slope, "intercept": intercept, "lower": lower, "step": step}.items():
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def of(cls, module):
        """The constants that an `LMA` computes with in evaluation."""
        lower, step = module.bounds(module.running_mean, module.running_std)
        return cls(*module.lines(lower, step), lower, step, module.settings.range_sigmas)

    def reset_parameters(self):
        """NaN for what a checkpoint lacks: there is no start to fall back on."""
        for buffer in self.buffers():
            init.constant_(buffer, math.nan)

    def forward(self, x):
        kernels = kernels_for(x, self.slope.shape[-1])
        return kernels.lma(x, self.slope, self.intercept, self.lower, self.step)

    def extra_repr(self):
        return f"num_segments={self.slope.shape[-1]}, per_channel={self.slope.dim() == 2}"


def _in_backward():
    """Whether autograd is running, that is, whether this forward is gradient checkpointing's second one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _fingerprint(x, samples=64):
    """A few elements spread over `x`, enough to know it again; float32."""
    flat = x.detach().reshape(-1)
    # an odd stride does not stay in one channel
    # what is not finite would be unlike itself
    return flat[:: flat.numel() // samples | 1][:samples].float().nan_to_num(0, 0, 0)
