"""How the pictures of a report look: colours, panels, and figures as SVG."""

import io
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lma_hf.hub.curves import BACKGROUND, FAINT, INK

# Okabe and Ito's colours, which the colour-blind can tell apart, black, brown and grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#777777")
MARKERS = "os^Dvphd<>"
MAX_WIDTH = 12.4  # inches


class Picture(NamedTuple):
    """A figure of the report. Attributes: name: of its file. caption: what is to be seen, in words."""

    name: str
    title: str
    caption: str
    svg: str


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name; they repeat after nine."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(dict.fromkeys(names))}


def new_figure(width: float, height: float) -> Any:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor=BACKGROUND)


def panels(number: int, heights: tuple[float, ...] = (2.4,), width: float = 3.1) -> tuple[Any, list[tuple[Any, ...]]]:
    """A figure with a column of axes for each of `number` things, one of each height below another.

    Returns: (figure, a tuple of axes for each).
    """
    columns = max(1, min(number, int(MAX_WIDTH / width)))
    rows = math.ceil(number / columns)
    figure = new_figure(max(width * columns, 5.5), sum(heights) * rows + 0.5)
    grid = figure.subplots(rows * len(heights), columns, squeeze=False, height_ratios=heights * rows)
    for axes in grid.flatten():
        tidy(axes)
    height = len(heights)
    each = [grid[row * height : (row + 1) * height, column] for row in range(rows) for column in range(columns)]
    for unused in each[number:]:
        for axes in unused:
            axes.remove()
    return figure, [tuple(axes) for axes in each[:number]]


def tidy(axes: Any) -> None:
    """A light frame and small numbers."""
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def legend(figure: Any, axes: Any) -> None:
    """One legend below all panels, of what `axes` shows; a long one makes the figure higher."""
    handles, labels = axes.get_legend_handles_labels()
    width = 0.6 + 0.085 * max(map(len, labels))  # of an entry, in inches
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))  # `panels` leaves room for two
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def to_svg(figure: Any) -> str:
    """The figure as SVG, the same text for the same figure."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "lma_hf"}):
        figure.savefig(text, format="svg", facecolor=BACKGROUND, metadata={"Date": None, "Creator": None})
    # a hundredth of a point is enough, and half the size
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text.getvalue())
