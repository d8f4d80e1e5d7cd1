"""Class names of a dataset and of a model brought together by name, never silently by position."""

import logging
import re
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, Value

from lma_hf.errors import LabelMismatchError

logger = logging.getLogger(__name__)


def label_mapping(dataset_names: Sequence[str], model_names: Sequence[str], *, dataset: str, model: str) -> list[int]:
    """Position i of the dataset's labels -> the model's label id.

    Names that are not the same are compared without regard to case, "-", "_" and spaces. Where one side has only
    placeholders (transformers' LABEL_0.., or "0".."n-1") and the counts agree, it is the identity, with a warning.

    Args:
        dataset, model: how the two are called in messages.
    Raises: LabelMismatchError for any other difference.
    """
    ours, theirs = _comparable(dataset_names, model_names)
    if _same_set(ours, theirs):
        return [theirs.index(name) for name in ours]
    if not _positions_may_be_assumed(dataset_names, model_names):
        raise LabelMismatchError(
            f"dataset {dataset} has the labels {list(dataset_names)} but model {model} has {list(model_names)}; "
            "they must be the same names, use a model that was trained for this task"
        )
    logger.warning(
        "labels of dataset %s %s and model %s %s cannot be compared by name; assuming that their positions agree",
        dataset,
        list(dataset_names),
        model,
        list(model_names),
    )
    return list(range(len(ours)))


def align_labels(dataset: Dataset, mapping: Sequence[int]) -> Dataset:
    """`dataset` with each id in its "label" column replaced by `mapping[id]`; the same object for the identity.

    Negative ids, of rows without a label, stay.
    """
    if list(mapping) == list(range(len(mapping))):
        return dataset
    table = dataset.with_format("arrow")[:]
    columns = {name: table[name] for name in dataset.column_names}
    labels = np.asarray(columns["label"])
    columns["label"] = np.where(labels < 0, labels, np.asarray(mapping)[labels.clip(min=0)])
    return Dataset.from_dict(columns, features=Features({**dataset.features, "label": Value("int64")}))


def check_same_labels(
    dataset_names: Sequence[str], teacher_names: Sequence[str], student_names: Sequence[str]
) -> None:
    """Checks that teacher and student have the dataset's classes, and both in the same order.

    The order matters because distillation compares their logits position by position. Placeholder names
    (LABEL_0.., "0"..) fit any dataset of that many classes.
    Raises: LabelMismatchError with the three lists.
    """
    known = _same_set(*_comparable(dataset_names, teacher_names))
    teachers, students = _comparable(teacher_names, student_names)
    if not (known or _positions_may_be_assumed(dataset_names, teacher_names)):
        problem = "the labels differ"
    elif teachers != students:
        problem = "teacher and student must have the same labels in the same order"
    else:
        return
    raise LabelMismatchError(
        f"{problem}: dataset {list(dataset_names)}, teacher {list(teacher_names)}, student {list(student_names)}; "
        "use a teacher trained for this task and build the student from it"
    )


def _comparable(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    # names that are the same need no normalizing, which would make one of "a" and "A"
    return (list(ours), list(theirs)) if _same_set(ours, theirs) else (_normalized(ours), _normalized(theirs))


def _normalized(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[-_\s]+", " ", name.strip().casefold()) for name in names]


def _same_set(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    # A name that occurs twice after normalizing would make the mapping ambiguous.
    return sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours)


def _positions_may_be_assumed(dataset_names: Sequence[str], model_names: Sequence[str]) -> bool:
    count = len(dataset_names)
    placeholders = ([f"LABEL_{i}" for i in range(count)], [str(i) for i in range(count)])
    return len(model_names) == count and (list(dataset_names) in placeholders or list(model_names) in placeholders)
