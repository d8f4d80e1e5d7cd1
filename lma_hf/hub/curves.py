"""A picture of the activations that a model has learned: a panel a layer, beside the activation they replaced."""

import copy
import math
import re
from pathlib import Path

import torch
from transformers.activations import ACT2FN

from lma_hf.errors import MissingDependencyError, SurgeryError
from lma_hf.hub.card_words import activation_title
from lma_hf.modeling.activation_lma import LMA, FoldedLMA
from lma_hf.modeling.modeling_lma import OURS
from lma_hf.modeling.swap_record_lma import read_swap

CURVES = "activation_curves.png"
NUM_POINTS = 1201
MAX_COLUMNS = 4
NUM_UNITS = 3
DOTS_PER_INCH = 120
BACKGROUND, INK, FAINT = "#fcfcfc", "#222222", "#8a8a8a"
# Okabe and Ito's colours, which the colour-blind can tell apart
LEARNED, REPLACED, UNITS, DENSITY = "#0072B2", "#D55E00", "#009E73", "#999999"


def draw_activation_curves(model, path):
    """Write `activation_figure` as a PNG."""
    figure = activation_figure(model)
    figure.savefig(Path(path), dpi=DOTS_PER_INCH, facecolor=BACKGROUND, metadata={"Software": None})


def activation_figure(model, densities=None, density_label="density of the pre-activations"):
    """Draw what every learned activation of a model computes, with its segments and the activation it replaced.

    An activation with pieces for every unit is drawn as the median over its units, the band that holds 90 % of them,
    and a few single units.

    Args:
        model: with LMA or another activation of ours in its FFN blocks.
        densities: fqn -> (x, density) of the pre-activations there, drawn at the foot of the panel.
    Returns: a matplotlib figure, a panel a layer.
    Raises: MissingDependencyError without matplotlib; SurgeryError if the model has no learned activation.
    """
    modules = learned_activations(model)
    if not modules:
        raise SurgeryError(f"{type(model).__name__} holds no learned activation to draw; leave the picture out")
    replaced = _replaced(model)
    panels = _panels(len(modules), with_difference=replaced is not None)
    for (above, below), (fqn, module) in zip(panels, modules.items(), strict=True):
        x, y = sample_curve(module)
        _draw_curves(above, module, x, y)
        above.set_title(_layer_of(fqn), fontsize=10, color=INK)
        if replaced is not None:
            name, function = replaced
            label = f"{activation_title(name)}, which it replaced"
            above.plot(x, function(x), color=REPLACED, linewidth=1.5, linestyle=(0, (4, 2)), zorder=5, label=label)
            _draw_curves(below, module, x, y - function(x)[:, None])
        if fqn in (densities or {}):
            _draw_density(above, *densities[fqn], density_label)
        below.set_xlabel("pre-activation", fontsize=9, color=INK)
    _label(panels, replaced)
    return panels[0][0].figure


def learned_activations(model):
    """Fqn in the base model -> module of every activation that has learned something, constants included."""
    base = getattr(model, "base_model", model)
    return {fqn: module for fqn, module in base.named_modules() if isinstance(module, OURS)}


def _panels(number, with_difference):
    """(axes of the curves, axes of their difference from what they replaced) a layer; the same axes without one."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the picture of the activations needs matplotlib, which is not installed; run pip install 'lma_hf[plots]'"
        ) from error
    columns = min(number, MAX_COLUMNS)
    rows = math.ceil(number / columns)
    heights = (2.6, 1.5) if with_difference else (2.6,)
    size = (max(3.1 * columns, 5.5), sum(heights) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor=BACKGROUND)
    grid = figure.subplots(rows * len(heights), columns, squeeze=False, height_ratios=heights * rows)
    for axes in grid[-len(heights) :, columns - (rows * columns - number) :].flatten():
        axes.remove()
    above, below = grid[:: len(heights)].flatten(), grid[len(heights) - 1 :: len(heights)].flatten()
    return list(zip(above, below, strict=True))[:number]


def _label(panels, replaced):
    """The legend, once for all panels, and what the vertical axes show."""
    above, below = panels[0]
    handles, labels = above.get_legend_handles_labels()
    columns = len(labels) if len(labels) < 6 else 3
    above.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for number in range(0, len(panels), MAX_COLUMNS):
        above, below = panels[number]
        above.set_ylabel("output", fontsize=9, color=INK)
        if replaced is not None:
            below.set_ylabel(f"minus {activation_title(replaced[0])}", fontsize=9, color=INK)


def _replaced(model):
    """(name, function) of the activation that a swap has replaced, or None."""
    swap = read_swap(model.config)
    return None if swap is None else (swap.replaced, ACT2FN[swap.replaced])


def _layer_of(fqn):
    """The part of a fqn that tells layers apart: "encoder.layer.0"."""
    match = re.match(r".*\.\d+(?=\.|$)", fqn)
    return match[0] if match else fqn


@torch.no_grad()
def sample_curve(module, num_points=NUM_POINTS):
    """What an activation computes, on a grid; NaN where a piece ends and the next does not begin at its end.

    Returns: (x of shape (points,), y of shape (points, channels)) on the CPU; channels is 1 if all units share it.
    """
    # a copy, so that neither its mode, its statistics nor its precision matter or change
    module = copy.deepcopy(module).float().cpu().eval()
    bounds = segment_bounds(module)
    x = torch.linspace(*_view(bounds), num_points)
    y = module(x[:, None].expand(-1, _num_channels(module)).contiguous())
    if bounds is not None:
        lower, step, segments = bounds
        index = ((x[:, None] - lower.reshape(-1)) / step.reshape(-1)).floor().clamp(0, segments - 1)
        y[1:][index.diff(dim=0) != 0] = math.nan
    return x, y


def _num_channels(module):
    """Units that have an activation of their own; 1 if all share one."""
    bounds = segment_bounds(module)
    if bounds is not None:
        return bounds[0].numel()
    return max(parameter.shape[-1] for parameter in module.parameters())


@torch.no_grad()
def segment_bounds(module):
    """(lower, step, number of segments) of an LMA in evaluation, on the CPU; None of another activation."""
    if isinstance(module, LMA):
        lower, step = module.bounds(module.running_mean, module.running_std)
        return lower.float().cpu(), step.float().cpu(), module.settings.num_segments
    if isinstance(module, FoldedLMA):
        return module.lower.float().cpu(), module.step.float().cpu(), module.slope.shape[-1]
    return None


def _median_edges(bounds):
    """The edges of the segments, of shape (k + 1,); of the median unit where each has its own."""
    lower, step, segments = bounds
    return lower.median() + step.median() * torch.arange(segments + 1)


def _view(bounds):
    """The inputs to show: the segments and a little more, or where ordinary pre-activations are."""
    if bounds is None:
        return -4.0, 4.0
    first, *_, last = _median_edges(bounds).tolist()
    margin = 0.12 * (last - first)
    return min(first - margin, -2.0), max(last + margin, 2.0)


def _draw_curves(axes, module, x, y):
    """The curve of all units, or the median, the spread and some of many, over the range of the segments."""
    bounds = segment_bounds(module)
    if bounds is not None:
        edges = _median_edges(bounds).tolist()
        axes.axvspan(edges[0], edges[-1], color="#efefef", zorder=0, label="range of the segments")
        axes.vlines(edges, 0, 0.03, transform=axes.get_xaxis_transform(), color=FAINT, linewidth=1)
    if y.shape[1] == 1:
        axes.plot(x, y[:, 0], color=LEARNED, linewidth=2, zorder=4, label="learned")
    else:
        _draw_units(axes, x, y)
    axes.axhline(0, color=FAINT, linewidth=0.6, zorder=1)
    axes.axvline(0, color=FAINT, linewidth=0.6, zorder=1)
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _draw_density(axes, x, density, label):
    """The density, scaled to the lower third of the panel; it has no unit of its own there."""
    height = density / density.max() / 3
    axes.fill_between(x, 0, height, transform=axes.get_xaxis_transform(), color=DENSITY, alpha=0.35, linewidth=0)
    axes.plot(x, height, transform=axes.get_xaxis_transform(), color=DENSITY, linewidth=0.8, label=label)


def _draw_units(axes, x, y):
    low, median, high = torch.nanquantile(y, torch.tensor([0.05, 0.5, 0.95]), dim=1)
    axes.fill_between(x, low, high, color=LEARNED, alpha=0.22, linewidth=0, zorder=2, label="90 % of the units")
    chosen = torch.linspace(0, y.shape[1] - 1, NUM_UNITS + 2).long()[1:-1]
    for number, unit in enumerate(chosen):
        label = None if number else f"{NUM_UNITS} of the units"
        axes.plot(x, y[:, unit], color=UNITS, linewidth=0.9, zorder=3, label=label)
    axes.plot(x, median, color=LEARNED, linewidth=2, zorder=4, label="median unit")
