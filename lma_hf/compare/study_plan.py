"""What a study was meant to hold, from the study.yaml in its folder: order of its parts, whole grid, baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lma_hf.compare.cells import CellResult
from lma_hf.errors import DataError

STUDY = "study.yaml"


class Variant(NamedTuple):
    """What is compared: all settings of a cell but task and seed."""

    student: str
    activation: str
    axes: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        return f"{self.student} {self.name}"

    @property
    def name(self) -> str:
        """What tables of one student call it."""
        axes = ", ".join(f"{axis}={value}" for axis, value in self.axes)
        return f"{self.activation} ({axes})" if axes else self.activation

    @property
    def settings(self) -> dict[str, str]:
        """Every setting by its name."""
        return {"student": self.student, "activation": self.activation, **dict(self.axes)}


def variant_of(cell: CellResult) -> Variant:
    """The variant that a cell is a run of."""
    return Variant(cell.student, cell.activation, tuple(cell.axes))


@dataclass(frozen=True)
class StudyPlan:
    """The grid of a study, in its order. Attributes: axes: name -> values. baseline: an activation."""

    tasks: Sequence[str]
    students: Sequence[str]
    activations: Sequence[str]
    axes: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    baseline: str

    @property
    def variants(self) -> list[Variant]:
        """Every variant."""
        axes = [[(axis, value) for value in values] for axis, values in self.axes.items()]
        grid = product(self.students, self.activations, *axes)
        return [Variant(student, activation, tuple(values)) for student, activation, *values in grid]


def read_plan(study_dir: str | Path) -> StudyPlan | None:
    """The plan in a study's folder; None where there is no study.yaml. Raises: DataError if it cannot be read."""
    path = Path(study_dir) / STUDY
    if not path.is_file():
        return None
    try:
        study: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        activations = list(study["activations"])
        return StudyPlan(
            tasks=list(study["tasks"]),
            students=list(study["students"]),
            activations=activations,
            axes={axis: list(values) for axis, values in (study.get("axes") or {}).items()},
            seeds=list(study["seeds"]),
            baseline=study.get("baseline") or activations[0],
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is no study's configuration ({type(error).__name__}: {reason}); restore it"
        ) from error


def plan_of(results: Sequence[CellResult]) -> StudyPlan:
    """The grid of everything that the cells have, in their order; the baseline is GELU, or else what comes first."""
    activations = _each_once(cell.activation for cell in results)
    axes: dict[str, list[str]] = {}
    for axis, value in (pair for cell in results for pair in cell.axes):
        values = axes.setdefault(axis, [])
        values += [] if value in values else [value]
    return StudyPlan(
        tasks=_each_once(cell.task for cell in results),
        students=_each_once(cell.student for cell in results),
        activations=activations,
        axes=axes,
        seeds=sorted({cell.seed for cell in results}),
        baseline="gelu" if "gelu" in activations else activations[0],
    )


def _each_once(values):
    return list(dict.fromkeys(values))
