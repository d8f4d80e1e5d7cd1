"""Timings of candidates that take turns, the memory they keep for backward, and the rows that report both."""

import contextlib
import csv
import ctypes
import math
import random
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lma_hf.errors import ConfigError

MODES = ("inference", "training")
WARMUP, WARMUP_MS = 3, 1000.0  # calls before a measurement; fewer once they have taken so long
# Shorter calls are repeated within a sample, so that the clock and the Python around them do not count.
SAMPLE_MS = 1.0
# A sample of shorter calls starts with one that is not timed, since what the step before left in the caches and in the
# allocator decides between 2 and 12 ms for the same work; longer calls settle by themselves.
SETTLE_MS = 100.0


class Setting(NamedTuple):
    """What all candidates of a group share.

    Attributes:
        kind: activation, ffn, model or export. shape: sizes joined by x. dtype: of the input, or of autocast.
        threads: of torch's CPU operators, and of ONNX Runtime's. mode: one of MODES.
    """

    kind: str
    shape: str
    dtype: str
    threads: int
    mode: str


class Candidate(NamedTuple):
    """What is timed.

    Attributes:
        kernel: who computes it: "torch", "reference", our kernel or "onnxruntime".
        kept_bytes: what it keeps in training. size_mb: of its file, where it has one, in 1e6 bytes.
    """

    step: Callable[[], Any]
    kernel: str
    kept_bytes: int | None = None
    size_mb: float | None = None


COLUMNS = (*Setting._fields, "candidate", "kernel", "repeats", "median_ms", "min_ms")
COLUMNS += ("ratio_to_gelu", "ratio_to_copy", "kept_bytes", "size_mb")
TRACE = ("date", "processor", "torch", "lma_hf", "git_commit")


def measure(setting: Setting, candidates: Mapping[str, Candidate], repeats: int) -> list[dict[str, Any]]:
    """One row of COLUMNS for each candidate, all timed in turns.

    Ratios are of medians; None where gelu or copy is no candidate. Raises: ConfigError if repeats < 1.
    """
    steps = {name: candidate.step for name, candidate in candidates.items()}
    with using_threads(setting.threads), torch.inference_mode(setting.mode == "inference"):
        samples = time_in_turns(steps, repeats)
    median_ms = {name: statistics.median(values) for name, values in samples.items()}
    rows = []
    for name, (_, kernel, *sizes) in candidates.items():
        ratios = (median_ms[name] / median_ms[to] if to in median_ms else None for to in ("gelu", "copy"))
        values = (*setting, name, kernel, repeats, median_ms[name], min(samples[name]), *ratios, *sizes)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def time_in_turns(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Times of steps that all run once within each repeat, so that drift hits all alike.

    Every repeat draws its own order, so that none always finds the caches as the same other one leaves them.

    Returns: `repeats` times of one call, in ms, for each name. Raises: ConfigError if repeats < 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}, must be at least 1; the default is 20")
    calls = {name: _warm_up(step) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, draw = list(steps), random.Random(0)
    for _ in range(repeats):
        draw.shuffle(order)
        for name in order:
            samples[name].append(_sample_ms(steps[name], *calls[name]))
    return samples


def _warm_up(step: Callable[[], Any]) -> tuple[int, int]:
    """Run a step a few times; returns the untimed and the timed calls of a sample."""
    times: list[float] = []
    while len(times) < WARMUP and sum(times) < WARMUP_MS:
        times.append(_sample_ms(step, 0, 1))
    return int(min(times) < SETTLE_MS), max(1, math.ceil(SAMPLE_MS / min(times)))


def _sample_ms(step: Callable[[], Any], untimed: int, timed: int) -> float:
    for _ in range(untimed):
        step()
    start = time.perf_counter()
    for _ in range(timed):
        step()
    return (time.perf_counter() - start) * 1e3 / timed


def module_candidate(module: nn.Module, x: torch.Tensor, grad: torch.Tensor | None, kernel: str) -> Candidate:
    """A module on the input x: its forward pass in eval mode, or with dL/dy given forward and backward in training."""
    if grad is None:
        return Candidate(partial(module.eval(), x), kernel)
    module.train()
    step = partial(_forward_backward, module, [x, *module.parameters()], grad)
    return Candidate(step, kernel, kept_bytes(partial(module, x), module))


def _forward_backward(module: nn.Module, inputs: Sequence[torch.Tensor], grad: torch.Tensor) -> Any:
    return torch.autograd.grad(module(inputs[0]), inputs, grad)


class _Kept:
    """A storage that autograd keeps; lives as long as the graph that keeps it."""

    def __init__(self, tensor: torch.Tensor):
        self.storage = tensor.untyped_storage()


def kept_bytes(forward: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that the graph of `forward()` keeps for backward, each storage once; no parameters and buffers.

    An input that is kept counts, also if somebody else holds it too.
    """
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor):
        entry = _Kept(tensor)
        kept.add(entry)
        return entry

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry):
        output = forward()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    sizes = {entry.storage.data_ptr(): entry.storage.nbytes() for entry in kept}
    # the graph must live until the sizes are read: what it gave up on the way is not kept
    del output
    return sum(size for address, size in sizes.items() if address not in own)


def hold_memory() -> None:
    """Let the C library keep what is freed, as allocators for training do; without glibc, do nothing.

    Otherwise the page faults of large results hide what is measured (ReLU on 4096x3072: 80 ms instead of 12).
    """
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


@contextlib.contextmanager
def using_threads(threads: int):
    """Let torch's CPU operators use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path, environment: Mapping[str, Any]) -> None:
    """Write rows of `measure` as CSV; every line says by TRACE when, where and on which versions it was measured."""
    trace = {**environment, **environment["versions"]}
    with open(path, "x", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *TRACE])
        writer.writeheader()
        for row in rows:
            cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**cells, **{key: trace[key] for key in TRACE}})
