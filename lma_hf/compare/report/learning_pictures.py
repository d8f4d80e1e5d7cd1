"""Learning curves of a study, from the metrics.jsonl of its cells."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from lma_hf.compare.cells import CellResult
from lma_hf.compare.report.figures import Picture, legend, panels, to_svg
from lma_hf.compare.report.words import metric_heading, task_title
from lma_hf.compare.study_statistics import Study
from lma_hf.hub.curves import INK

METRICS = "metrics.jsonl"
LOSS = "distill_loss"
Curve = dict[int, float]


def learning_picture(study: Study, student: str, number: int, colours: Mapping[str, str]) -> Picture:
    """For each task the distillation loss on train above the score on validation, a line a variant."""
    variants = study.variants_of(student)
    figure, grid = panels(len(study.tasks), (1.9, 1.9))
    for (above, below), task in zip(grid, study.tasks, strict=True):
        for variant in variants:
            cells = study.runs(variant, task).values()
            if not cells:
                continue
            style = {"color": colours[variant.name], "linewidth": 1.3}
            losses, scores = (mean_curve(curves) for curves in zip(*map(read_curves, cells), strict=True))
            above.plot(losses.keys(), losses.values(), **style)
            below.plot(scores.keys(), scores.values(), marker="o", markersize=3, **style)
        above.set_title(task_title(task), fontsize=10, color=INK)
        above.set_ylabel("distillation loss", fontsize=8, color=INK)
        metric = next(cell.metric for cell in study if cell.task == task)
        below.set_ylabel(metric_heading(metric), fontsize=8, color=INK)
        below.set_xlabel("step", fontsize=8, color=INK)
        below.set_xlim(above.get_xlim())
    for variant in variants:
        above.plot([], [], color=colours[variant.name], label=variant.name)
    legend(figure, above)
    caption = "Means over the seeds: above, the distillation loss on train; below, the score on validation."
    return Picture(f"learning-{number}", f"Learning curves: {student}", caption, to_svg(figure))


def read_curves(cell: CellResult) -> tuple[Curve, Curve]:
    """(step -> distillation loss on train since the line before, step -> score on validation in points)."""
    lines = [json.loads(line) for line in (Path(cell.folder) / METRICS).read_text(encoding="utf-8").splitlines()]
    # null where --on_nan skip left out every step since the line before
    losses = {line["step"]: line[LOSS] for line in lines if line.get(LOSS) is not None}
    evaluations = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    return losses, {step: 100 * next(iter(splits.values()))[cell.metric] for step, splits in evaluations.items()}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that all curves have."""
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return {step: statistics.fmean(curve[step] for curve in curves) for step in steps}
