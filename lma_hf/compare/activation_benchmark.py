"""Speed and memory of LMA beside a copy, the activations of torch, the authors' form and the reference."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lma_hf.compare.timing import MODES, Candidate, Setting, measure, module_candidate
from lma_hf.kernels.registry import resolve, use_kernel
from lma_hf.modeling.activation_lma import LMA, FoldedLMA

# name -> the module for a number of channels
BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "gelu": lambda channels: nn.GELU(),
    "silu": lambda channels: nn.SiLU(),
    "authors": lambda channels: AuthorsLMA(),
    "reference": lambda channels: LMA(statistics="running"),
    "lma": lambda channels: LMA(statistics="running"),
    "lma frozen": lambda channels: LMA(statistics="frozen"),
    "lma batch": lambda channels: LMA(statistics="batch"),
    "lma per channel": lambda channels: LMA(statistics="running", per_channel=True, num_channels=channels),
    "lma 16": lambda channels: LMA(16, statistics="running"),
}
CANDIDATES = ("copy", *BUILDERS)
# seconds a step at this many elements in training: left out there unless asked for by name
SLOW = ("authors", "reference")
LARGE = 16384 * 3072


class AuthorsLMA(nn.Module):
    """LMA as its authors run it: one PyTorch operator after the other, each over the whole tensor (Xu et al. 2020).

    Statistics of the batch are taken in evaluation too, where only their moving averages are used.
    """

    def __init__(self, num_segments=8, momentum=0.01):
        super().__init__()
        self.num_segments, self.momentum = num_segments, momentum
        self.slope = nn.Parameter((torch.arange(num_segments) >= num_segments // 2).float())
        self.intercept = nn.Parameter(torch.zeros(num_segments))
        self.register_buffer("moving_mean", torch.zeros(()))
        self.register_buffer("moving_std", torch.ones(()))

    def forward(self, x):
        mean, std = x.detach().mean(), x.detach().std(correction=0)
        if self.training:
            self.moving_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
            self.moving_std.mul_(1 - self.momentum).add_(self.momentum * std)
        else:
            mean, std = self.moving_mean, self.moving_std
        step = 6 * std / self.num_segments
        index = ((x - mean + 3 * std) / step).long().clamp(0, self.num_segments - 1).view(-1)
        slope = self.slope.index_select(0, index).view_as(x)
        intercept = self.intercept.index_select(0, index).view_as(x)
        # parameters stay float32, as under autocast, whose next layer would take the result back to x's dtype
        return (slope * x + intercept).to(x.dtype)


def measure_activations(
    shapes: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    threads: Sequence[int],
    names: Sequence[str] | None = None,
    repeats: int = 20,
) -> Iterator[list[dict[str, Any]]]:
    """Time activations on normally distributed inputs, float32 parameters and, in training, given gradients.

    "inference" is the forward pass in eval mode; "training" is forward and backward to input and parameters, with the
    update of running statistics. A copy writes into memory that is already there, and in training copies x and dL/dy;
    all others allocate their results, as in a model.

    Args:
        shapes: (tokens, channels). dtypes: names of torch's dtypes. threads: numbers of CPU threads.
        names: of CANDIDATES; None: all, but not `left_out`.
    Yields: the rows of `lma_hf.compare.timing.measure`, a group of candidates at a time.
    """
    for shape in shapes:
        for dtype in dtypes:
            x, grad = _normal(shape, dtype, seed=0), _normal(shape, dtype, seed=1)
            for count in threads:
                for mode in MODES:
                    setting = Setting("activation", "x".join(map(str, shape)), dtype, count, mode)
                    chosen = names or [name for name in CANDIDATES if name not in left_out(shape, mode)]
                    yield measure(setting, build_candidates(chosen, x, grad, mode), repeats)


def left_out(shape: tuple[int, int], mode: str) -> tuple[str, ...]:
    """Candidates that are only timed for this shape if they are asked for by name."""
    return SLOW if mode == "training" and shape[0] * shape[1] >= LARGE else ()


def build_candidates(names: Sequence[str], x: torch.Tensor, grad: torch.Tensor, mode: str) -> dict[str, Candidate]:
    """What `measure` times, by name. Args: x, grad: of shape (tokens, channels); grad is dL/dy."""
    if mode == "training":
        return {name: _candidate(name, x.detach().requires_grad_(), grad) for name in names}
    return {name: _candidate(name, x, None) for name in names}


def _candidate(name: str, x: torch.Tensor, grad: torch.Tensor | None) -> Candidate:
    if name == "copy":
        return _copy_candidate(x, grad)
    module = BUILDERS[name](x.shape[-1])
    if name != "reference":
        return module_candidate(module, x, grad, kernel_of(module))
    with use_kernel("reference"):
        candidate = module_candidate(module, x, grad, kernel_of(module))
    return candidate._replace(step=partial(_by_reference, candidate.step))


def _by_reference(step: Callable[[], Any]) -> Any:
    with use_kernel("reference"):
        return step()


def _copy_candidate(x: torch.Tensor, grad: torch.Tensor | None) -> Candidate:
    x = x.detach()
    y = x.clone()
    if grad is None:
        return Candidate(partial(y.copy_, x), "torch")
    grad_x = grad.clone()

    def step():
        y.copy_(x)
        grad_x.copy_(grad)

    return Candidate(step, "torch", 0)


def kernel_of(module: nn.Module) -> str:
    """Who computes the activations in a module on the CPU: "torch", "reference", or the kernel's name and the
    processor's instructions that it uses."""
    if not any(isinstance(part, (LMA, FoldedLMA)) for part in module.modules()):
        return "torch"
    return describe_kernel(resolve("cpu").kernel)


def describe_kernel(kernel: str) -> str:
    """A kernel's name, and the instruction set of the one that has several."""
    return f"cpu ({torch.ops.lma_hf.instruction_set()})" if kernel == "cpu" else kernel


def _normal(shape: tuple[int, ...], dtype: str, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
