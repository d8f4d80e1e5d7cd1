"""Saved models beside each other: score, speed, memory and size, in PyTorch and in ONNX Runtime."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lma_hf.compare.export_benchmark import random_batch
from lma_hf.compare.report.figures import colours_of, legend, new_figure, tidy
from lma_hf.compare.report.score_pictures import pareto_front
from lma_hf.compare.timing import time_in_turns, using_threads
from lma_hf.errors import TrainingError
from lma_hf.hub.curves import FAINT, INK

BATCHES = ((1, 16), (1, 128), (32, 16), (32, 128))  # texts, tokens of each
BATCH = 32  # texts of a batch in a pass
PASSES = 3  # over all texts, of which the throughput is the median
COSTS = {"folder MB": "size of the folder, MB", "1x128 ms": "one text of 128 tokens, ms"}


@dataclass(frozen=True)
class Form:
    """A saved model as one runtime runs it.

    Attributes:
        name: what tables call it. run: batch -> logits. inputs: names of the model's inputs.
        vocab_size, max_length: of its tokens; max_length None where positions have no limit.
        batches: of the task's texts as this model reads them, of similar lengths; with "labels".
        score: all logits, all labels -> the task's metric.
        size_mb: of its folder, or of its file, in 1e6 bytes.
        source: what `peak_memory` takes: folder or ONNX file; None: it is not measured, as compiling takes far more.
    """

    name: str
    run: Callable[[Mapping[str, torch.Tensor]], Any]
    inputs: Sequence[str]
    vocab_size: int
    max_length: int | None
    batches: Sequence[Mapping[str, torch.Tensor]]
    score: Callable[[np.ndarray, np.ndarray], float]
    size_mb: float
    source: Path | None


def measure_forms(forms: Sequence[Form], threads: int, repeats: int) -> list[dict[str, Any]]:
    """One row a form. Latencies and passes over the texts take turns; peak memory is that of a process of its own."""
    rows = {form.name: {"model": form.name, "folder MB": form.size_mb} for form in forms}
    with using_threads(threads), torch.inference_mode():
        for _ in range(min(PASSES, repeats)):
            for form in forms:
                seconds, logits = _pass(form)
                rows[form.name].setdefault("score", 100 * form.score(logits, _labels(form)))
                rows[form.name].setdefault("texts/s", []).append(len(logits) / seconds)
        for count, length in BATCHES:
            steps = {form.name: partial(form.run, _random_batch(form, count, length)) for form in forms}
            for name, times in time_in_turns(steps, repeats).items():
                rows[name][f"{count}x{length} ms"] = statistics.median(times)
    for form in forms:
        rows[form.name]["texts/s"] = statistics.median(rows[form.name]["texts/s"])
        rows[form.name]["peak MB"] = peak_memory_mb(form, threads) if form.source else None
    return list(rows.values())


def _random_batch(form, count, length):
    return random_batch(form.inputs, form.vocab_size, count, min(length, form.max_length or length))


def _pass(form):
    """(seconds, all logits) of running every text."""
    start = time.perf_counter()
    logits = [form.run({name: batch[name] for name in form.inputs}) for batch in form.batches]
    return time.perf_counter() - start, np.concatenate([np.asarray(part) for part in logits])


def _labels(form):
    return np.concatenate([batch["labels"].numpy() for batch in form.batches])


def peak_memory_mb(form: Form, threads: int) -> float:
    """Most memory that a fresh process takes for loading a model and running 32 texts, in 1e6 bytes.

    What Python and its packages take is not counted. Raises: TrainingError if the process fails.
    """
    _, length = BATCHES[-1]
    numbers = [str(threads), str(min(length, form.max_length or length))]
    command = [sys.executable, "-m", "lma_hf.compare.peak_memory", str(form.source), *numbers, *form.inputs]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingError(f"peak memory of {form.name} cannot be measured: {last}")
    return float(done.stdout)


def pareto_picture(rows: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """Figure of score against size and against latency; the line joins what nothing cheaper reaches."""
    figure = new_figure(5.0 * len(COSTS), 4.4)
    colours = colours_of(row["model"] for row in rows)
    for axes, (key, label) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        tidy(axes)
        axes.plot(*pareto_front([(row[key], row["score"]) for row in rows]), color=FAINT, linewidth=1, zorder=1)
        for row in rows:
            axes.scatter([row[key]], [row["score"]], s=45, color=colours[row["model"]], label=row["model"], zorder=3)
        axes.set_xlabel(label, fontsize=9, color=INK)
        axes.set_ylabel(metric, fontsize=9, color=INK)
    legend(figure, axes)
    return figure
