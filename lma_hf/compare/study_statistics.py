"""What the cells of a study say: every variant on its own, and against a baseline by pairs of equal seeds.

Scores and differences are in points (100 times the score). docs/statistics.md says which test is used and why.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from lma_hf.compare.cells import CellResult
from lma_hf.compare.paired import PairedResult, analyse_pairs, holm, seeds_needed, sign_flip_p
from lma_hf.compare.study_plan import StudyPlan, Variant, plan_of, variant_of
from lma_hf.errors import ConfigError, DataError
from lma_hf.training.checkpoint import RESULTS

AVERAGE = "average"


class Study:
    """The finished cells of a study, found by variant, task and seed, all in the order of its plan.

    Args: results: of `read_results`, one or more. plan: unset: the grid of what the results have.
    Raises: DataError if two results are of the same cell.
    """

    def __init__(self, results: Sequence[CellResult], plan: StudyPlan | None = None):
        self.plan = plan or plan_of(results)
        found: dict[Variant, dict[str, dict[int, CellResult]]] = {}
        for cell in results:
            seeds = found.setdefault(variant_of(cell), {}).setdefault(cell.task, {})
            if cell.seed in seeds:
                raise DataError(f"{cell.folder} and {seeds[cell.seed].folder} are the same cell; remove one of them")
            seeds[cell.seed] = cell
        self.cells = {variant: found[variant] for variant in _in_order(found, self.plan.variants)}
        self.tasks = _in_order((cell.task for cell in results), self.plan.tasks)
        self.students = _in_order((cell.student for cell in results), self.plan.students)
        self.seeds = _in_order((cell.seed for cell in results), self.plan.seeds)

    def __iter__(self) -> Iterator[CellResult]:
        return (cell for tasks in self.cells.values() for seeds in tasks.values() for cell in seeds.values())

    def variants_of(self, student: str) -> list[Variant]:
        """The variants of a student."""
        return [variant for variant in self.cells if variant.student == student]

    def missing(self) -> list[tuple[Variant, str, int]]:
        """What the plan has and the study lacks."""
        grid = product(self.plan.variants, self.plan.tasks, self.plan.seeds)
        return [(variant, task, seed) for variant, task, seed in grid if seed not in self.runs(variant, task)]

    def runs(self, variant: Variant, task: str) -> dict[int, CellResult]:
        """Seed -> cell."""
        by_seed = self.cells.get(variant, {}).get(task, {})
        return {seed: by_seed[seed] for seed in self.seeds if seed in by_seed}

    def points(self, variant: Variant, task: str) -> dict[int, float]:
        """Seed -> score, in points."""
        return {seed: 100 * cell.score for seed, cell in self.runs(variant, task).items()}

    def average_points(self, variant: Variant, tasks: Sequence[str]) -> dict[int, float]:
        """Seed -> mean over the tasks, of seeds that have them all."""
        each = [self.points(variant, task) for task in tasks]
        seeds = [seed for seed in each[0] if all(seed in points for points in each)]
        return {seed: statistics.fmean(points[seed] for points in each) for seed in seeds}


def _in_order(found: Iterable[Any], planned: Sequence[Any]) -> list[Any]:
    """What was found, each once: what was planned first, in that order."""
    found = list(dict.fromkeys(found))
    return [each for each in planned if each in found] + [each for each in found if each not in planned]


@dataclass(frozen=True)
class Summary:
    """One variant on one task, or on the average of `tasks`.

    Attributes:
        points: seed -> score. teacher: its score on the same rows; None where it is not known.
        losses: name -> mean training loss of the last epoch, over seeds and tasks.
    """

    variant: Variant
    task: str
    tasks: tuple[str, ...]
    metric: str
    points: Mapping[int, float]
    teacher: float | None
    losses: Mapping[str, float]
    num_parameters: int
    size_mb: float
    latency_ms: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.points.values())

    @property
    def std(self) -> float | None:
        """Over seeds, with n - 1; None of a single one."""
        return statistics.stdev(self.points.values()) if len(self.points) > 1 else None

    @property
    def share_of_teacher(self) -> float | None:
        """In percent."""
        return 100 * self.mean / self.teacher if self.teacher else None


def summarise(study: Study) -> list[Summary]:
    """Every variant on each of its tasks, and on their average where a seed has them all."""
    summaries = []
    for variant, by_task in study.cells.items():
        tasks = [task for task in study.tasks if task in by_task]
        summaries += [_summary(study, variant, task, (task,)) for task in tasks]
        if study.average_points(variant, tasks):
            summaries.append(_summary(study, variant, AVERAGE, tuple(tasks)))
    return summaries


def _summary(study: Study, variant: Variant, task: str, tasks: tuple[str, ...]) -> Summary:
    points = study.average_points(variant, tasks)
    cells = [study.runs(variant, each)[seed] for each in tasks for seed in points]
    teachers = [teacher_points(study.runs(variant, each)[min(points)]) for each in tasks]
    latencies = [cell.latency_ms for cell in cells if cell.latency_ms is not None]
    metrics = dict.fromkeys(cell.metric for cell in cells)
    return Summary(
        variant,
        task,
        tasks,
        metric="mean of the tasks' metrics" if len(metrics) > 1 else next(iter(metrics)),
        points=points,
        teacher=None if None in teachers else statistics.fmean(teachers),
        losses=mean_losses(cells),
        num_parameters=round(statistics.fmean(cell.num_parameters for cell in cells)),
        size_mb=statistics.fmean(cell.size_mb for cell in cells),
        latency_ms=statistics.fmean(latencies) if latencies else None,
    )


def mean_losses(cells: Sequence[CellResult]) -> dict[str, float]:
    """Name -> mean over the cells, of losses that all of them have."""
    names = [name for name in cells[0].train_losses if all(name in cell.train_losses for cell in cells)]
    return {name: statistics.fmean(cell.train_losses[name] for cell in cells) for name in names}


def teacher_points(cell: CellResult) -> float | None:
    """The teacher's score on the rows and in the metric that the cell was scored by; None if it is not recorded."""
    teacher = json.loads((cell.folder / RESULTS).read_text(encoding="utf-8")).get("teacher")
    if not teacher:
        return None
    return 100 * next(iter(teacher["metrics"].values()))[cell.metric]


@dataclass(frozen=True)
class Difference:
    """A variant minus its baseline, on one task or on the average of `tasks`, over the seeds that both have.

    Attributes:
        result: of the differences a seed, in points. seeds_needed: to find the wanted difference.
        p_t_holm, p_sign_flip_holm: corrected over the tasks; on average over the `num_compared` variants.
        p_all_pairs: on average, the sign-flip test over the pairs of all tasks and seeds.
    """

    variant: Variant
    baseline: Variant
    task: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    result: PairedResult
    seeds_needed: int | None
    p_all_pairs: float | None = None
    p_t_holm: float | None = None
    p_sign_flip_holm: float | None = None
    num_compared: int = 1


def resolve_baseline(study: Study, baseline: str) -> tuple[str, str]:
    """(setting, value) of a baseline such as "gelu", an activation, or "num_layers=2".

    Raises: ConfigError if no variant has it.
    """
    setting, _, value = baseline.rpartition("=")
    setting = setting or "activation"
    known = list(dict.fromkeys(variant.settings.get(setting) for variant in study.cells))
    if value not in known:
        seen = f"has the {setting} {', '.join(map(str, known))}" if any(known) else f"has no axis {setting!r}"
        raise ConfigError(f"baseline is {baseline!r}, but the study {seen}; name one it has, an axis as NAME=VALUE")
    return setting, value


def compare_to_baseline(study: Study, baseline: str, wanted: float) -> list[Difference]:
    """Every variant minus the one that differs from it in the baseline's setting only.

    Args: baseline: as of `resolve_baseline`. wanted: the difference that `seeds_needed` is for, in points.
    Returns: for each such pair of variants one a task, then that of the average; of pairs without a common seed none.
    Raises: ConfigError if no variant has the baseline's setting.
    """
    setting, value = resolve_baseline(study, baseline)
    by_settings = {frozenset(variant.settings.items()): variant for variant in study.cells}
    on_tasks, on_average = [], []
    for variant in study.cells:
        counterpart = by_settings.get(frozenset({**variant.settings, setting: value}.items()))
        if counterpart not in (None, variant):
            on_tasks += _correct(_compare_tasks(study, variant, counterpart, wanted))
            on_average += _compare_averages(study, variant, counterpart, wanted)
    return [*on_tasks, *_correct(on_average)]


def _compare_tasks(study: Study, variant: Variant, baseline: Variant, wanted: float) -> list[Difference]:
    """One difference for each task where there is a pair."""
    rows = []
    for task in study.tasks:
        by_seed = _subtract(study.points(variant, task), study.points(baseline, task))
        if by_seed:
            result = analyse_pairs(list(by_seed.values()))
            needed = _needed(result, wanted)
            rows.append(Difference(variant, baseline, task, (task,), tuple(by_seed), result, needed))
    return rows


def _compare_averages(study: Study, variant: Variant, baseline: Variant, wanted: float) -> list[Difference]:
    """The difference of the averages over all tasks with a pair; none where no seed has them all on both sides."""
    pairs = {task: _subtract(study.points(variant, task), study.points(baseline, task)) for task in study.tasks}
    pairs = {task: by_seed for task, by_seed in pairs.items() if by_seed}
    seeds = [seed for seed in study.seeds if all(seed in by_seed for by_seed in pairs.values())]
    if not pairs or not seeds:
        return []
    result = analyse_pairs([statistics.fmean(by_seed[seed] for by_seed in pairs.values()) for seed in seeds])
    all_pairs = np.array([by_seed[seed] for by_seed in pairs.values() for seed in seeds])
    p_all_pairs = sign_flip_p(all_pairs) if len(all_pairs) > 1 else None
    settings = (tuple(pairs), tuple(seeds), result, _needed(result, wanted), p_all_pairs)
    return [Difference(variant, baseline, AVERAGE, *settings)]


def _correct(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's p values over all of them."""
    p_t = _holm([each.result.p_t for each in differences])
    p_sign_flip = _holm([each.result.p_sign_flip for each in differences])
    return [
        replace(each, p_t_holm=t, p_sign_flip_holm=flip, num_compared=len(differences))
        for each, t, flip in zip(differences, p_t, p_sign_flip, strict=True)
    ]


def _subtract(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def _needed(result: PairedResult, wanted: float) -> int | None:
    return None if result.std is None else seeds_needed(result.std, wanted)


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected p values; None where there is none, which counts as no test."""
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]
