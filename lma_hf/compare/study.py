"""A study as one configuration, and its expansion into cells: tasks x students x activations x axes x seeds."""

import difflib
import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Literal

from lma_hf.compare.cells import Cell
from lma_hf.errors import ConfigError
from lma_hf.training.options import check_not_negative, check_positive, option

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
RESERVED = ("output_dir", "overwrite_output_dir", "resume", "seed")
# columns of a study's tables, where an axis becomes one more
COLUMNS = {
    *("task", "student", "activation", "seed", "seeds", "metric", "score", "mean", "std", "baseline"),
    *("baseline_student", "num_tasks", "num_seeds", "num_parameters", "size_mb", "latency_ms", "weights_sha256"),
    *("teacher_mean", "share_of_teacher_percent", "train_seconds", "wall_seconds", "t_low", "t_high"),
    *("bootstrap_low", "bootstrap_high", "p_t", "p_t_holm", "p_sign_flip", "p_sign_flip_holm"),
    *("p_sign_flip_all_pairs", "effect_size"),
}


@dataclass(kw_only=True)
class CompareConfig:
    """Many `distill` runs, compared; see docs/studies.md."""

    output_dir: str = field(metadata={"help": "folder of the study; finished cells in it are not run again"})
    tasks: dict = field(metadata={"help": "name -> options; task_name is the name unless it is among them"})
    students: dict = field(metadata={"help": "name -> options of `distill`"})
    activations: dict = field(metadata={"help": "name -> options of `distill`"})
    seeds: list[int] = option([42], "seeds of every cell")
    axes: dict = option({}, "further axes: name -> (name -> options of `distill`)")
    common: dict = option({}, "options of `distill` for every cell")
    overrides: dict = option({}, "pattern of cell names -> options, which win over all others")
    baseline: str | None = option(None, "activation that the others are compared with; unset: the first")
    cells: list[str] | None = option(None, "patterns such as 'rte/*/seed-1': run only cells with such names")
    jobs: int = option(1, "cells that run at the same time")
    threads_per_job: int = option(1, "CPU threads of a cell; results are equal bit by bit only for equal numbers")
    gpus_per_job: int = option(0, "GPUs that ray or slurm gives to a cell")
    executor: Literal["local", "ray", "slurm"] = option("local", "what runs the cells, see docs/studies.md")
    slurm: dict = option({}, "executor slurm: parameters of submitit's executor, and its cluster")
    keep_models: Literal["all", "first_seed", "none"] = option("all", "whose models stay after their cell is finished")
    latency: bool = option(False, "time the students, one by one, after the last cell")
    verify: bool = option(False, "run finished cells again, in a temporary folder, and compare them bit by bit")

    def __post_init__(self):
        check_positive(self, "jobs", "threads_per_job")
        check_not_negative(self, "gpus_per_job")
        for key in ("tasks", "students", "activations"):
            _check_axis(key, getattr(self, key))
        for axis, values in self.axes.items():
            _check_name("axes", axis)
            _check_no_column(axis)
            _check_axis(f"axes: {axis}", values)
        _check_options("common", self.common)
        for pattern, options in self.overrides.items():
            _check_options(f"overrides: {pattern}", options)
        self._check_seeds()
        if self.resolved_baseline not in self.activations:
            raise ConfigError(
                f"baseline is {self.baseline!r}, allowed are the activations {', '.join(self.activations)}"
            )

    def _check_seeds(self):
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise ConfigError(f"seeds names {seed} twice; name each seed once")
        if not self.seeds:
            raise ConfigError("seeds is empty; name at least one")

    @property
    def resolved_baseline(self):
        """The activation that the others are compared with."""
        return self.baseline or next(iter(self.activations))


def expand(config):
    """The cells of a study, those of the first seed first, so that the grid is complete early.

    Args: config: a `CompareConfig`.
    Returns: list of `Cell`, whose options are still as the YAML has them.
    Raises: ConfigError if an override fits no cell.
    """
    axes = [[(axis, name) for name in values] for axis, values in config.axes.items()]
    grid = product(config.seeds, config.tasks, config.students, config.activations, *axes)
    cells = [
        Cell(task=task, student=student, activation=activation, seed=seed, axes=tuple(values))
        for seed, task, student, activation, *values in grid
    ]
    for pattern in config.overrides:
        select(cells, [pattern], "overrides")
    return [replace(cell, options=merged_options(config, cell)) for cell in cells]


def merged_options(config, cell):
    """What the parts of the study say about a cell; the later ones win."""
    parts = [config.common, config.tasks[cell.task], config.students[cell.student]]
    parts += [config.activations[cell.activation], *(config.axes[axis][value] for axis, value in cell.axes)]
    parts += [options for pattern, options in config.overrides.items() if fnmatchcase(cell.name, pattern)]
    options = {key: value for part in parts for key, value in (part or {}).items()}
    # own data is told by its columns
    known = {"task_name", "text_columns"} & set(options)
    return options if known else {"task_name": cell.task, **options}


def select(cells, patterns, key):
    """Those of the cells whose name fits a pattern. Args: key: how messages call the patterns.

    Raises: ConfigError if a pattern fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            nearest = difflib.get_close_matches(pattern, [cell.name for cell in cells], n=1, cutoff=0.0)[0]
            raise ConfigError(f"{key} names {pattern!r}, which fits no cell; the nearest cell is {nearest}")
    return [cell for cell in cells if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]


def check_different(cells):
    """Raises: ConfigError if two cells of one seed have the same options."""
    seen = {}
    for cell in cells:
        other = seen.setdefault(repr((cell.seed, sorted(cell.options.items()))), cell)
        if other is not cell:
            raise ConfigError(f"cells {other.name} and {cell.name} have the same options; change or drop one")


def _check_axis(key, values):
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{key} is {values!r}, expected a mapping of at least one name to options")
    for name, options in values.items():
        _check_name(key, name)
        _check_options(f"{key}: {name}", options)


def _check_name(key, name):
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ConfigError(
            f"{key} has the name {name!r}, which becomes a folder; allowed are up to 40 letters, digits and . _ - "
            "(in quotes where YAML would take it for something else)"
        )


def _check_no_column(axis):
    if axis in COLUMNS:
        raise ConfigError(f"axes has the name {axis!r}, which is a column of the tables; choose another name")


def _check_options(key, options):
    # `rte:` with nothing behind it is None
    if not isinstance(options, dict | None):
        raise ConfigError(f"{key} is {options!r}, expected options of `lma-hf distill` such as {{num_layers: 3}}")
    for name in RESERVED:
        if name in (options or {}):
            raise ConfigError(f"{key} sets {name}, which the study sets itself; drop it (seeds has the seeds)")
