"""Pictures of scores: differences with intervals, every seed, and scores against their cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from lma_hf.compare.report.figures import MARKERS, Picture, colours_of, legend, new_figure, panels, tidy, to_svg
from lma_hf.compare.report.words import metric_heading, task_title
from lma_hf.compare.study_statistics import Difference, Study, Summary
from lma_hf.hub.curves import FAINT, INK

COSTS = {"size_mb": "size, MB", "latency_ms": "latency of one text, ms"}


def difference_picture(differences: Sequence[Difference], baseline: str, number: int) -> Picture:
    """Forest plot of the differences on average: the mean, its t interval and every seed.

    Args: differences: one or more, all on average. number: of the baseline, for the file's name.
    """
    figure = new_figure(7.5, 1.0 + 0.3 * len(differences))
    axes = figure.subplots()
    tidy(axes)
    axes.axvline(0, color=INK, linewidth=1)
    colours = colours_of(difference.variant.student for difference in differences)
    for row, difference in enumerate(differences):
        result, colour = difference.result, colours[difference.variant.student]
        axes.scatter(result.differences, [row] * len(result.differences), s=12, color="0.7", zorder=2)
        if result.t_interval is not None:
            axes.plot(result.t_interval, [row, row], color=colour, linewidth=2.2, zorder=3)
        axes.scatter([result.mean], [row], s=38, color=colour, zorder=4)
    axes.set_yticks(range(len(differences)), [str(difference.variant) for difference in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(f"points more than with {baseline}, mean of the tasks", fontsize=9, color=INK)
    caption = "Mean difference with its 95 % t interval; grey: single seeds. Right of 0 the variant is better."
    return Picture(f"differences-{number}", f"Differences from {baseline}, on average", caption, to_svg(figure))


def seed_picture(study: Study, student: str, number: int, colours: Mapping[str, str]) -> Picture:
    """A panel a task, a column a variant, a dot a seed; a line joins what has the same seed."""
    variants = study.variants_of(student)
    height = 2.2 + 0.05 * max(len(variant.name) for variant in variants)
    figure, grid = panels(len(study.tasks), (height,), width=max(3.1, 0.8 + 0.2 * len(variants)))
    for (axes,), task in zip(grid, study.tasks, strict=True):
        points = [study.points(variant, task) for variant in variants]
        for seed in study.seeds:
            axes.plot([each.get(seed, float("nan")) for each in points], color="0.85", linewidth=0.8, zorder=1)
        for column, (variant, each) in enumerate(zip(variants, points, strict=True)):
            axes.scatter([column] * len(each), each.values(), s=16, color=colours[variant.name], zorder=3)
            if each:
                mean = sum(each.values()) / len(each)
                axes.plot([column - 0.3, column + 0.3], [mean, mean], color=colours[variant.name], linewidth=2)
        axes.set_title(task_title(task), fontsize=10, color=INK)
        axes.set_xticks(range(len(variants)), [variant.name for variant in variants], rotation=90)
        axes.set_xlim(-0.6, len(variants) - 0.4)
        metric = next(cell.metric for cell in study if cell.task == task)
        axes.set_ylabel(metric_heading(metric), fontsize=8, color=INK)
    caption = "A dot is a run, a bar the mean; grey lines join runs with the same seed."
    return Picture(f"seeds-{number}", f"Every seed: {student}", caption, to_svg(figure))


def cost_picture(averages: Sequence[Summary], colours: Mapping[str, str], left_out: int = 0) -> Picture:
    """Average score against size and, where it was measured, latency; the line joins what nothing cheaper beats.

    Args:
        averages: over the same tasks.
        colours: of every name of a variant in the study.
        left_out: how many variants lack a task, for the caption.
    """
    shown = ["size_mb"] + (["latency_ms"] if all(each.latency_ms is not None for each in averages) else [])
    figure, grid = panels(len(shown), (4.0,), width=5.2)
    students = list(dict.fromkeys(each.variant.student for each in averages))
    for (axes,), key in zip(grid, shown, strict=True):
        for each in averages:
            marker = MARKERS[students.index(each.variant.student) % len(MARKERS)]
            axes.scatter(
                [getattr(each, key)], [each.mean], s=45, marker=marker, color=colours[each.variant.name], zorder=3
            )
        axes.plot(*pareto_front([(getattr(each, key), each.mean) for each in averages]), color=FAINT, linewidth=1)
        _widen(axes)
        axes.set_xlabel(COSTS[key], fontsize=9, color=INK)
        axes.set_ylabel("mean score of the tasks", fontsize=9, color=INK)
    shown_colours = {each.variant.name: colours[each.variant.name] for each in averages}
    _cost_legend(figure, grid[0][0], shown_colours, students)
    caption = "Colour: activation; shape: student. The line joins the models that no smaller (faster) one reaches."
    if left_out:
        caption += f" Left out: {left_out} that have not run on all tasks."
    return Picture("cost", "Score against size and latency", caption, to_svg(figure))


def _widen(axes: Any) -> None:
    """Let the axis of costs span a few percent, so that costs that hardly differ look alike."""
    low, high = axes.get_xlim()
    centre = (low + high) / 2
    half = max(high - centre, 0.02 * centre)
    axes.set_xlim(centre - half, centre + half)
    axes.ticklabel_format(axis="x", useOffset=False)


def _cost_legend(figure: Any, axes: Any, colours: dict[str, str], students: Sequence[str]) -> None:
    for name, colour in colours.items():
        axes.scatter([], [], s=45, color=colour, label=name)
    for number, student in enumerate(students):
        axes.scatter([], [], s=45, marker=MARKERS[number % len(MARKERS)], color="0.6", label=student)
    legend(figure, axes)


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """(costs, scores) of the points that no cheaper or equally cheap one equals or beats, by rising cost."""
    costs, scores = [], []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not scores or score > scores[-1]:
            costs.append(cost)
            scores.append(score)
    return costs, scores
