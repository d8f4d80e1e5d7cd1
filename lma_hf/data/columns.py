"""From a dataset's own columns to the ones we train on: checked texts and an integer or float "label"."""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value

from lma_hf.data.glue import Task, nearest
from lma_hf.errors import DataError, LabelMismatchError

HIDDEN_LABEL = -1


def check_columns(dataset: Dataset, task: Task, where: str, *, with_label: bool = True) -> None:
    """DataError where a column of `task` is missing or the split has no rows; `where` opens the message."""
    for column in (*task.text_columns, *([task.label_column] if with_label else [])):
        if column not in dataset.column_names:
            hint = nearest(column, dataset.column_names)
            raise DataError(
                f"{where} has no column '{column}'{hint or ';'} columns there: {', '.join(dataset.column_names)}"
            )
    if len(dataset) == 0:
        raise DataError(f"{where} has 0 rows; at least 1 is needed, check the file or choose another split")


def find_label_names(splits: Mapping[str, Dataset], task: Task, source: str) -> tuple[str, ...]:
    """The classes of a task in id order: the dataset's ClassLabel names, else the task's own, else inferred.

    Inference reads the first of `splits`, so that must be the training split: sorted names for text labels, and
    "0", "1", ... for integers. Raises: LabelMismatchError where splits or task declare different names; DataError
    where integers have gaps or there are fewer than 2 classes.
    """
    features = {split: dataset.features[task.label_column] for split, dataset in splits.items()}
    declared = {split: tuple(f.names) for split, f in features.items() if isinstance(f, ClassLabel)}
    if not declared:
        first = next(iter(splits))
        return task.label_names or _infer_names(splits[first], task, f"split '{first}' of {source}")
    if len(set(declared.values())) > 1:
        raise LabelMismatchError(f"the splits of {source} declare different labels: {declared}; they must agree")
    names = next(iter(declared.values()))
    if task.label_names and set(task.label_names) != set(names):
        raise LabelMismatchError(
            f"{source} declares the labels {list(names)} but task '{task.name}' has {list(task.label_names)}; "
            "choose the task that fits the dataset"
        )
    return names


def encode_split(dataset: Dataset, task: Task, where: str) -> Dataset:
    """The checked in-memory dataset of only the text columns and "label".

    Args:
        task: with its label names filled in.
        where: names the split, opens every error message.
    Returns: texts as string; "label" as int64 ids into `task.label_names`, or float32 for regression. Integers are
        ids, except where the names are integers too.
    Raises: DataError for null or non-text texts and for labels that are missing, hidden, unknown or not numbers.
    """
    labels = (_scores if task.is_regression else _class_ids)(dataset, task, where)
    return _encoded(dataset, task, where, labels, "float32" if task.is_regression else "int64")


def encode_texts(dataset: Dataset, task: Task, where: str) -> Dataset:
    """The checked in-memory dataset of only the text columns and, as "label", the number of each row from 0.

    Labels are not looked at; with the row numbers in their place, predictions find back into the dataset's order.
    Args and Raises: as of `encode_split`, for texts.
    """
    return _encoded(dataset, task, where, np.arange(len(dataset)), "int64")


def _encoded(dataset: Dataset, task: Task, where: str, labels: np.ndarray, label_type: str) -> Dataset:
    table = dataset.select_columns(list(task.text_columns)).with_format("arrow")[:]
    columns = {name: _checked_texts(table[name], name, where) for name in task.text_columns} | {"label": labels}
    types = dict.fromkeys(task.text_columns, "string") | {"label": label_type}
    return Dataset.from_dict(columns, features=Features({name: Value(dtype) for name, dtype in types.items()}))


def _label_column(dataset: Dataset, task: Task, where: str) -> pa.ChunkedArray:
    column = dataset.select_columns([task.label_column]).with_format("arrow")[:][task.label_column]
    # A blank csv field arrives as "" where pandas gave up on numbers, elsewhere as null.
    missing = pc.fill_null(pc.equal(column, ""), True) if _is_text(column) else column.is_null()
    if pc.any(missing).as_py():
        raise DataError(
            f"{where} has {pc.sum(missing).as_py()} missing labels, the first in row {_first(missing)}; "
            "every row needs a label, drop those rows"
        )
    return column


def _class_column(dataset: Dataset, task: Task, where: str) -> pa.ChunkedArray:
    column = _label_column(dataset, task, where)
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    if not (_is_text(column) or pa.types.is_integer(column.type)):
        raise DataError(f"{where} has {column.type} labels; allowed: integers 0 to n-1 or the names of the classes")
    return column


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _first(mask: pa.ChunkedArray | np.ndarray) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0])


def _checked_texts(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    if column.null_count:
        raise DataError(
            f"{where} has {column.null_count} missing texts in column '{name}', the first in row "
            f"{_first(column.is_null())}; every row needs a text, drop or fill those rows"
        )
    if not _is_text(column):
        raise DataError(f"{where} has {column.type} values in column '{name}'; text is needed, choose a text column")
    return column


def _check_not_hidden(labels: np.ndarray, is_hidden: bool, where: str, advice: str = "use another split") -> None:
    if is_hidden:
        raise DataError(
            f"the labels of {where} are hidden ({HIDDEN_LABEL} in {np.sum(labels == HIDDEN_LABEL)} of {len(labels)} "
            f"rows); it cannot be trained on or scored, {advice}"
        )


def _infer_names(dataset: Dataset, task: Task, where: str) -> tuple[str, ...]:
    column = _class_column(dataset, task, where)
    values = sorted(column.unique().to_pylist())
    names = tuple(str(value) for value in values)
    if pa.types.is_integer(column.type):
        advice = f"use another split, or pass label_names if {HIDDEN_LABEL} is a class"
        _check_not_hidden(np.asarray(column), HIDDEN_LABEL in values, where, advice)
        if values != list(range(len(values))):
            raise DataError(
                f"{where} has the integer labels {values[0]} to {values[-1]} with {len(values)} different values; "
                "allowed: 0 to n-1 without gaps, or pass label_names"
            )
    if len(names) < 2:
        raise DataError(f"{where} has only the label {list(names)}; at least 2 classes are needed")
    return names


def _class_ids(dataset: Dataset, task: Task, where: str) -> np.ndarray:
    column = _class_column(dataset, task, where)
    if _is_text(column):
        return _ids_of_names(column, task.label_names, where)
    ids = np.asarray(column)
    by_name = _are_integers(task.label_names) and not isinstance(dataset.features[task.label_column], ClassLabel)
    is_class = by_name and str(HIDDEN_LABEL) in task.label_names
    _check_not_hidden(ids, not is_class and bool(np.any(ids == HIDDEN_LABEL)), where)
    if by_name:
        return _ids_of_names(column.cast(pa.string()), task.label_names, where)
    outside = (ids < 0) | (ids >= task.num_labels)
    if outside.any():
        row = _first(outside)
        raise DataError(
            f"{where} has the label {ids[row]} in row {row}; allowed: 0 to {task.num_labels - 1} "
            f"({', '.join(task.label_names)})"
        )
    return ids


def _are_integers(names: tuple[str, ...]) -> bool:
    """Whether integer labels can be meant by name: "1" to "5", say, but not "01" or "+1"."""
    return all(re.fullmatch("0|-?[1-9][0-9]*", name) for name in names)


def _ids_of_names(column: pa.ChunkedArray, label_names: tuple[str, ...], where: str) -> np.ndarray:
    ids = pc.index_in(column, value_set=pa.array(label_names, column.type))
    if ids.null_count:
        row = _first(ids.is_null())
        value = column[row].as_py()
        hint = nearest(value, label_names)
        raise DataError(f"{where} has the label '{value}' in row {row}{hint or ';'} allowed: {', '.join(label_names)}")
    return np.asarray(ids)


def _scores(dataset: Dataset, task: Task, where: str) -> np.ndarray:
    column = _label_column(dataset, task, where)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(
            f"{where} has {column.type} labels such as {column[0].as_py()!r}; regression task '{task.name}' needs "
            "numbers"
        )
    scores = np.asarray(column, dtype=np.float32)
    if not np.isfinite(scores).all():
        row = _first(~np.isfinite(scores))
        raise DataError(f"{where} has the label {scores[row]} in row {row}; finite numbers are needed, drop that row")
    _check_not_hidden(scores, bool(np.all(scores == HIDDEN_LABEL)), where)
    return scores
