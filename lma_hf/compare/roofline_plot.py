"""Plot of memory bandwidth: how near each activation comes to a copy, which is the roof of an elementwise function."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lma_hf.compare.timing import MODES
from lma_hf.errors import MissingDependencyError

# Tensors that must be read or written at least, whoever computes: x in and y out; in training also x and dL/dy in and
# dL/dx out. A copy in training is two.
TENSORS = {"inference": 2, "training": 5}
COPIED = {"inference": 2, "training": 4}
MARKERS = "os^Dvphd<>"
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # %
DOTS_PER_INCH = 150


def check_matplotlib() -> None:
    """Raises: MissingDependencyError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib, which is not installed; run pip install 'lma_hf[plots]'"
        ) from error


def can_be_plotted(candidates: Collection[str]) -> bool:
    """Whether there is a copy and something to compare with it."""
    return {"copy"} < set(candidates)


def plot_name(dtype: str, threads: int) -> str:
    """File name of the plot for a dtype and a number of threads."""
    return f"bandwidth-{dtype}-threads{threads}.png"


def plot_rooflines(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Draw a plot for every dtype and number of threads of the activations in `rows`, if they can be plotted.

    Args: rows: of `lma_hf.compare.timing.measure`, or read from the CSV.
    Returns: the names of the files. Raises: MissingDependencyError if matplotlib is not installed.
    """
    activations = [row for row in rows if row["kind"] == "activation"]
    if not can_be_plotted({row["candidate"] for row in activations}):
        return []
    check_matplotlib()
    plots: dict[str, list[Mapping[str, Any]]] = {}
    for row in activations:
        plots.setdefault(plot_name(row["dtype"], row["threads"]), []).append(row)
    for name, group in plots.items():
        _figure(group).savefig(folder / name, dpi=DOTS_PER_INCH)
    return list(plots)


def bandwidth(row: Mapping[str, Any]) -> float:
    """GB/s (1e9 bytes): the bytes that must be read and written, by the median time; more traffic does not count."""
    tokens, channels = map(int, row["shape"].split("x"))
    tensors = (COPIED if row["candidate"] == "copy" else TENSORS)[row["mode"]]
    size = getattr(torch, row["dtype"]).itemsize
    return tensors * tokens * channels * size / float(row["median_ms"]) / 1e6


def _figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Two panels, a mode each, with a line for each candidate and a point for each shape."""
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(row["candidate"] for row in rows) if name != "copy"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    height = 1.8 + 0.1 * len(shapes) + (0.2 + 0.11 * len(shapes)) * len(names)
    figure = Figure(figsize=(13, height), layout="constrained")
    for axes, mode in zip(figure.subplots(1, len(MODES), sharex=True, sharey=True), MODES, strict=True):
        for number, shape in enumerate(shapes):
            points = [row for row in rows if (row["mode"], row["shape"]) == (mode, shape)]
            _draw_points(axes, points, names, number, len(shapes))
        _draw_frame(axes, names, "inference: forward" if mode == "inference" else "training: forward and backward")
    dtype, threads = rows[0]["dtype"], rows[0]["threads"]
    title = f"Memory bandwidth of activations, {dtype}, {threads} thread{'' if int(threads) == 1 else 's'}"
    figure.suptitle(title, fontsize=14)
    return figure


def _draw_points(axes: Any, points: Sequence[Mapping[str, Any]], names: list[str], number: int, count: int) -> None:
    """The points of shape `number` of `count`, a little below those of the shape before it, labelled in GB/s."""
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    gigabytes = {row["candidate"]: bandwidth(row) for row in points}
    copied = gigabytes.pop("copy")
    share = [100 * value / copied for value in gigabytes.values()]
    at = [names.index(name) + 0.85 * ((number + 0.5) / count - 0.5) for name in gigabytes]
    label = f"{points[0]['shape']} (copy: {copied:.3g} GB/s)"
    colour, marker = colormaps["viridis"](0.9 * number / count), MARKERS[number % len(MARKERS)]
    axes.scatter(share, at, s=22, color=[colour], marker=marker, label=label, zorder=3)
    style = {
        "va": "center",
        "fontsize": 7,
        "color": colour,
        "path_effects": [withStroke(linewidth=1.5, foreground="w")],
    }
    for x, y, value in zip(share, at, gigabytes.values(), strict=True):
        axes.annotate(f"{value:.3g}", (x, y), (5, 0), textcoords="offset points", **style)


def _draw_frame(axes: Any, names: list[str], title: str) -> None:
    """The roof, the axes, a band behind every second candidate, and the legend below."""
    axes.set_title(title, fontsize=12)
    axes.axvline(100, color="black", linewidth=1.2, zorder=2)
    for number in range(0, len(names), 2):
        axes.axhspan(number - 0.5, number + 0.5, color="0.95", zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.08)  # room for the numbers
    low, high = axes.get_xlim()
    axes.set_xticks(*zip(*((tick, f"{tick:g}") for tick in TICKS if low < tick < high), strict=True))
    axes.minorticks_off()
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_xlabel("bandwidth in % of a copy's (line: 100 %); numbers: GB/s")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, ncols=2, frameon=False, fontsize=9)
