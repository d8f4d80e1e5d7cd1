"""The task table: what each GLUE task is called, which columns it has and which metrics judge it."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lma_hf.errors import DataError

CLASS_METRICS = ("accuracy",)
BINARY_METRICS = ("accuracy", "f1")
REGRESSION_METRICS = ("pearson", "spearmanr")


@dataclasses.dataclass(frozen=True)
class Task:
    """One text classification or regression task.

    `label_names` is None for regression and () for class names that are still to be inferred from the data;
    `lma_hf.data.sources.load_splits` fills them in. `best_metric` is the one of `metrics` that selects checkpoints,
    on the first of `validation_splits`; the splits are never merged.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    best_metric: str
    label_column: str = "label"
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ("validation",)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """Size of the model's output: 1 for regression, else the number of classes (DataError while unknown)."""
        if self.label_names is None:
            return 1
        if not self.label_names:
            raise DataError(
                f"the classes of task '{self.name}' are not known yet; load its splits first or pass label_names"
            )
        return len(self.label_names)


def _classification(name: str, text_columns: str, label_names: str, **kwargs) -> Task:
    defaults = {"metrics": CLASS_METRICS, "best_metric": "accuracy"}
    return Task(name, tuple(text_columns.split()), tuple(label_names.split()), **(defaults | kwargs))


# Label names in the order of the ClassLabel features of nyu-mll/glue; metrics as in the GLUE paper, table 1.
GLUE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _classification(
            "cola",
            "sentence",
            "unacceptable acceptable",
            metrics=("matthews_correlation",),
            best_metric="matthews_correlation",
        ),
        _classification("sst2", "sentence", "negative positive"),
        _classification(
            "mrpc", "sentence1 sentence2", "not_equivalent equivalent", metrics=BINARY_METRICS, best_metric="f1"
        ),
        Task("stsb", ("sentence1", "sentence2"), None, REGRESSION_METRICS, "pearson"),
        _classification(
            "qqp", "question1 question2", "not_duplicate duplicate", metrics=BINARY_METRICS, best_metric="f1"
        ),
        _classification(
            "mnli",
            "premise hypothesis",
            "entailment neutral contradiction",
            validation_splits=("validation_matched", "validation_mismatched"),
        ),
        _classification("qnli", "question sentence", "entailment not_entailment"),
        _classification("rte", "sentence1 sentence2", "entailment not_entailment"),
        _classification("wnli", "sentence1 sentence2", "not_entailment entailment"),
    )
}


def nearest(name: str, known: Sequence[str]) -> str:
    """The hint ", did you mean 'x'?" for the closest of `known`, or "" where nothing is close."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f", did you mean '{matches[0]}'?" if matches else ""


def get_task(name: str) -> Task:
    """The GLUE task called `name`; DataError names the nearest one and the list."""
    if name not in GLUE_TASKS:
        hint = nearest(name.lower(), list(GLUE_TASKS))
        raise DataError(f"unknown task '{name}'{hint or ';'} allowed: {', '.join(GLUE_TASKS)}")
    return GLUE_TASKS[name]


def custom_task(
    name: str,
    text_columns: Sequence[str],
    label_column: str,
    *,
    label_names: Sequence[str] | None = None,
    is_regression: bool = False,
    train_split: str = "train",
    validation_split: str = "validation",
) -> Task:
    """A task over any other dataset.

    Args:
        text_columns: one column, or two for sentence pairs.
        label_names: the classes in id order; None infers them from the data.
    Raises: DataError for other than 1 or 2 text columns, fewer than 2 label names, or label names with regression.
    """
    if isinstance(text_columns, str) or len(text_columns) not in (1, 2):
        raise DataError(f"task '{name}' has text_columns {text_columns!r}; give a list of 1 or 2 column names")
    if label_names is not None and (is_regression or len(set(label_names)) < 2):
        allowed = "none for regression" if is_regression else "at least 2 different names"
        raise DataError(f"task '{name}' has label_names {list(label_names)}; allowed: {allowed}")
    names = None if is_regression else tuple(label_names or ())
    return Task(
        name=name,
        text_columns=tuple(text_columns),
        label_names=names,
        metrics=_default_metrics(names),
        best_metric="pearson" if is_regression else "accuracy",
        label_column=label_column,
        train_split=train_split,
        validation_splits=(validation_split,),
    )


def resolve_task(config: Any) -> Task:
    """The task that a `DataConfig` describes."""
    if config.task_name is None:
        return custom_task(
            Path(config.dataset).name,
            config.text_columns,
            config.label_column,
            label_names=config.label_names,
            is_regression=config.is_regression,
            train_split=config.train_split or "train",
            validation_split=config.validation_split or "validation",
        )
    task = dataclasses.replace(get_task(config.task_name), label_column=config.label_column)
    if config.train_split:
        task = dataclasses.replace(task, train_split=config.train_split)
    if config.validation_split:
        task = dataclasses.replace(task, validation_splits=(config.validation_split,))
    return task


def hub_configuration(config: Any) -> str | None:
    """The configuration of a hub dataset that a `DataConfig` means; GLUE's has one a task."""
    return config.dataset_config or config.task_name


def fill_label_names(task: Task, label_names: Sequence[str]) -> Task:
    """`task` with the classes found in its data; one whose classes were unknown gets its metrics now as well."""
    names = tuple(label_names)
    metrics = task.metrics if task.label_names else _default_metrics(names)
    return dataclasses.replace(task, label_names=names, metrics=metrics)


def _default_metrics(label_names: tuple[str, ...] | None) -> tuple[str, ...]:
    if label_names is None:
        return REGRESSION_METRICS
    return BINARY_METRICS if len(label_names) == 2 else CLASS_METRICS
