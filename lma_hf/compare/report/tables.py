"""The tables of a report: rows of the CSV files, and tables of text for people."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lma_hf.compare.paired import ALPHA
from lma_hf.compare.report.words import UNKNOWN, interval, p_value, signed, task_title, verdict
from lma_hf.compare.study_statistics import AVERAGE, Difference, Study, Summary

DISTILL_LOSS = "distill_loss"


class Entry(NamedTuple):
    """A table's cell. Attributes: sub: small print below. mark: better, worse or nothing."""

    main: str
    sub: str = ""
    mark: str = ""


class TextTable(NamedTuple):
    """A table for people; `rows` are (heading, entries)."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Entry]]]


def summary_row(summary: Summary) -> dict[str, Any]:
    """A row of summary.csv."""
    return {
        **summary.variant.settings,
        "task": summary.task,
        "num_tasks": len(summary.tasks),
        "metric": summary.metric,
        "num_seeds": len(summary.points),
        "mean": summary.mean,
        "std": summary.std,
        "teacher_mean": summary.teacher,
        "share_of_teacher_percent": summary.share_of_teacher,
        **{f"train_{name}": value for name, value in summary.losses.items()},
        "num_parameters": summary.num_parameters,
        "size_mb": summary.size_mb,
        "latency_ms": summary.latency_ms,
    }


def difference_row(difference: Difference, wanted: float) -> dict[str, Any]:
    """A row of differences.csv."""
    result = difference.result
    t_low, t_high = result.t_interval or (None, None)
    bootstrap_low, bootstrap_high = result.bootstrap_interval or (None, None)
    return {
        **difference.variant.settings,
        "baseline": difference.baseline.name,
        "baseline_student": difference.baseline.student,
        "task": difference.task,
        "num_tasks": len(difference.tasks),
        "seeds": " ".join(map(str, difference.seeds)),
        "mean": result.mean,
        "std": result.std,
        "t_low": t_low,
        "t_high": t_high,
        "bootstrap_low": bootstrap_low,
        "bootstrap_high": bootstrap_high,
        "p_t": result.p_t,
        "p_t_holm": difference.p_t_holm,
        "p_sign_flip": result.p_sign_flip,
        "p_sign_flip_holm": difference.p_sign_flip_holm,
        "p_sign_flip_all_pairs": difference.p_all_pairs,
        "effect_size": result.effect_size,
        f"seeds_for_{wanted:g}_points": difference.seeds_needed,
    }


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV; a row may lack columns of others."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: f"{value:.10g}" if isinstance(value, float) else value for key, value in row.items()}
            )


def score_table(study: Study, student: str, summaries: Sequence[Summary]) -> TextTable:
    """Mean, deviation and distillation loss of every variant of a student, with the teacher's scores on top."""
    found = {(each.variant, each.task): each for each in summaries if each.variant.student == student}
    columns = _task_columns(study)
    with_latency = any(each.latency_ms is not None for each in found.values())
    rows = _teacher_row(found, columns)
    for variant in study.variants_of(student):
        entries = [_score_entry(study, found.get((variant, task))) for task in columns]
        rows.append((variant.name, entries + _cost_entries(found, variant, with_latency)))
    headings = [*map(task_title, columns), "% of teacher", "parameters", "MB"]
    headings += ["ms"] if with_latency else []
    padded = [(name, entries + [Entry("")] * (len(headings) - len(entries))) for name, entries in rows]
    return TextTable(student, headings, padded)


def _teacher_row(found: Mapping[Any, Summary], columns: Sequence[str]) -> list[tuple[str, list[Entry]]]:
    """The teacher's scores, where all variants have the same one."""
    scores = {task: {each.teacher for (_, at), each in found.items() if at == task} for task in columns}
    common = [next(iter(scores[task])) if len(scores[task]) == 1 else None for task in columns]
    return [("teacher", [Entry(_number(value)) for value in common])] if any(common) else []


def _task_columns(study: Study) -> list[str]:
    """The tasks, and their average where they are several."""
    return [*study.tasks, AVERAGE] if len(study.tasks) > 1 else study.tasks


def _score_entry(study: Study, summary: Summary | None) -> Entry:
    if summary is None:
        return Entry(UNKNOWN)
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    loss = summary.losses.get(DISTILL_LOSS)
    small = ["" if loss is None else f"loss {loss:.4f}"]
    if len(summary.points) < len(study.seeds):
        small.append(f"n = {len(summary.points)}")
    if summary.task == AVERAGE and len(summary.tasks) < len(study.tasks):
        small.append(f"{len(summary.tasks)} of {len(study.tasks)} tasks")
    return Entry(f"{summary.mean:.2f}{spread}", ", ".join(filter(None, small)))


def _cost_entries(found: Mapping[Any, Summary], variant: Any, with_latency: bool) -> list[Entry]:
    """Share of the teacher, parameters, size and latency; those of the average, or of any task without one."""
    average = found.get((variant, AVERAGE))
    any_task = average or next(each for (of, _), each in found.items() if of == variant)
    share = None if average is None else average.share_of_teacher
    entries = [Entry(_number(share)), Entry(f"{any_task.num_parameters:,}"), Entry(_number(any_task.size_mb))]
    return entries + ([Entry(_number(any_task.latency_ms))] if with_latency else [])


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def difference_table(study: Study, student: str, baseline: str, differences: Sequence[Difference]) -> TextTable:
    """Mean differences with their intervals, a column a task."""
    found = {(each.variant, each.task): each for each in differences if each.variant.student == student}
    variants = [variant for variant in study.variants_of(student) if any(of == variant for of, _ in found)]
    columns = _task_columns(study)
    rows = [(each.name, [_difference_entry(found.get((each, task))) for task in columns]) for each in variants]
    return TextTable(f"{student}, minus {baseline}", list(map(task_title, columns)), rows)


def _difference_entry(difference: Difference | None) -> Entry:
    if difference is None:
        return Entry(UNKNOWN)
    result = difference.result
    return Entry(signed(result.mean), interval(result.t_interval), mark_of(difference))


def mark_of(difference: Difference) -> str:
    """better or worse where that is clear after the correction."""
    if difference.p_t_holm is None or difference.p_t_holm >= ALPHA:
        return ""
    return "better" if difference.result.mean > 0 else "worse"


def verdict_entries(differences: Sequence[Difference], wanted: float) -> dict[str, list[Entry]]:
    """Student -> what every comparison on average says."""
    found: dict[str, list[Entry]] = {}
    for each in differences:
        found.setdefault(each.variant.student, []).append(Entry(verdict(each, wanted), mark=mark_of(each)))
    return found


def evidence_table(differences: Sequence[Difference], wanted: float) -> TextTable:
    """Everything that was computed about the differences on average."""
    columns = ["difference", "t interval", "bootstrap", "p", "p, Holm", "sign-flip p", "over all pairs", "effect"]
    columns += ["seeds", f"seeds for {wanted:g}"]
    rows = [(str(each.variant), [Entry(text) for text in _evidence_texts(each)]) for each in differences]
    return TextTable("On average", columns, rows)


def _evidence_texts(difference: Difference) -> list[str]:
    result = difference.result
    return [
        signed(result.mean),
        interval(result.t_interval),
        interval(result.bootstrap_interval),
        *map(p_value, (result.p_t, difference.p_t_holm, result.p_sign_flip, difference.p_all_pairs)),
        UNKNOWN if result.effect_size is None else f"{result.effect_size:.2f}",
        str(len(difference.seeds)),
        UNKNOWN if difference.seeds_needed is None else f"{difference.seeds_needed:,}",
    ]
