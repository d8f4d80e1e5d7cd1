"""Pictures of what students have learned; only of cells whose weights are still there."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from lma_hf.compare.cells import CellResult
from lma_hf.compare.pre_activations import (
    Density,
    measured_densities,
    normal_densities,
    segment_movements,
    text_batches,
)
from lma_hf.compare.report.figures import Picture, panels, to_svg
from lma_hf.compare.report.words import task_title
from lma_hf.compare.study_plan import Variant
from lma_hf.compare.study_statistics import Study
from lma_hf.data.sources import is_local
from lma_hf.hub.curves import INK, activation_figure, learned_activations
from lma_hf.training.checkpoint import RUN_CONFIG
from lma_hf.training.config import DataConfig

WEIGHTS = "model.safetensors"


def learned_pictures(study: Study) -> list[Picture]:
    """The learned activations of one cell of each variant, and how far the pieces of the LMAs moved."""
    pictures, movements = [], {}
    for number, (variant, cell) in enumerate(cells_with_weights(study).items(), 1):
        model = AutoModelForSequenceClassification.from_pretrained(cell.folder)
        if not learned_activations(model):
            continue
        densities, label = densities_of(model, cell)
        svg = to_svg(activation_figure(model, densities, label))
        title, where = f"Learned activations: {variant}", f"{task_title(cell.task)}, seed {cell.seed}"
        pictures.append(Picture(f"activations-{number}", title, f"{where}. {_in_words(label)}", svg))
        if moved := segment_movements(model):
            movements[f"{variant} ({where})"] = moved
    return [*pictures, movement_picture(movements)] if movements else pictures


def cells_with_weights(study: Study) -> dict[Variant, CellResult]:
    """The first cell of each variant whose model has not been discarded."""
    found: dict[Variant, CellResult] = {}
    for variant, by_task in study.cells.items():
        cells = (cell for by_seed in by_task.values() for _, cell in sorted(by_seed.items()))
        cell = next((cell for cell in cells if (Path(cell.folder) / WEIGHTS).is_file()), None)
        if cell is not None:
            found[variant] = cell
    return found


def densities_of(model: PreTrainedModel, cell: CellResult) -> tuple[dict[str, Density], str]:
    """(densities of the pre-activations, what they are): of real tokens where the cell's data is a folder at hand."""
    config = data_config_of(cell)
    if is_local(config.dataset) and Path(config.dataset).expanduser().is_dir():
        batches = text_batches(config, AutoTokenizer.from_pretrained(cell.folder))
        if batches is not None:
            return measured_densities(model, batches), "density of real pre-activations"
    return normal_densities(model), "normal density by the running statistics"


def data_config_of(cell: CellResult) -> DataConfig:
    """Where a cell's data came from, as its run recorded it."""
    recorded = yaml.safe_load((Path(cell.folder) / RUN_CONFIG).read_text(encoding="utf-8"))
    names = [field.name for field in dataclasses.fields(DataConfig)]
    return DataConfig(**{name: recorded[name] for name in names if name in recorded})


def _in_words(label: str) -> str:
    if label.startswith("normal"):
        return "The data is not at hand, so the density is the normal one by the running statistics."
    return "The density is that of validation tokens, all units of the layer together."


def movement_picture(movements: Mapping[str, Mapping[str, torch.Tensor]]) -> Picture:
    """A panel a model: layers down, segments across, the median unit's movement as colour and number."""
    longest = max(moved.shape[1] for layers in movements.values() for moved in layers.values())
    deepest = max(map(len, movements.values()))
    figure, grid = panels(len(movements), (1.3 + 0.4 * deepest,), width=max(4.0, 0.42 * longest))
    for (axes,), (name, layers) in zip(grid, movements.items(), strict=True):
        _draw_movement(axes, list(layers.values()))
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_yticks(range(len(layers)), [f"layer {number}" for number in range(1, len(layers) + 1)])
        axes.set_xlabel("segment", fontsize=8, color=INK)
    caption = (
        "Root mean square change of the output over each segment against the start that calibration would give on the "
        "same segments, in units of the output. Where each unit has its own pieces: of the median unit, and below it "
        "what 5 % of the units exceed."
    )
    return Picture("movement", "How far each segment moved from its start", caption, to_svg(figure))


def _draw_movement(axes: Any, layers: Sequence[torch.Tensor]) -> None:
    median, high = (torch.stack([moved.quantile(share, dim=0) for moved in layers]) for share in (0.5, 0.95))
    axes.grid(False)
    axes.imshow(median.numpy(), cmap="Blues", vmin=0, vmax=1.5 * median.max().item(), aspect="auto")
    for row, moved in enumerate(layers):
        for column in range(moved.shape[1]):
            text = f"{median[row, column]:.2f}" + (f"\n{high[row, column]:.2f}" if len(moved) > 1 else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=INK)
    axes.set_xticks(range(median.shape[1]), range(1, median.shape[1] + 1))
