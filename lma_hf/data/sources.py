"""Splits of a task from the hub or from a local folder, as small in-memory datasets with checked columns."""

import csv
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, ReadInstruction, load_dataset
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from lma_hf.data.columns import check_columns, encode_split, encode_texts, find_label_names
from lma_hf.data.glue import Task, fill_label_names, nearest
from lma_hf.data.progress import no_progress_bars
from lma_hf.errors import DataError

logger = logging.getLogger(__name__)

FILE_TYPES = ("parquet", "csv", "tsv", "jsonl")


def load_splits(
    source: str,
    task: Task,
    splits: Sequence[str],
    *,
    dataset_config: str | None = None,
    max_samples: Mapping[str, int] | None = None,
    seed: int = 42,
) -> tuple[DatasetDict, Task]:
    """Loads the named splits of a task.

    Args:
        source: hub id ("nyu-mll/glue"), or a local folder with <task>/<split>.<type> or <split>.<type>, where type
            is parquet, csv, tsv or jsonl.
        splits: names, or slices of splits as `datasets` writes them: "train[:90%]", "train[1000:2000]".
        dataset_config: configuration of a hub dataset that has several (GLUE's tasks are).
        max_samples: split -> upper bound of rows, chosen at random by `seed`; a smaller bound keeps a prefix of
            what a larger one keeps.
    Returns: the splits with the text columns and "label" (int64, or float32 for regression), and the task with its
        label names as the dataset has them. A further validation split that is absent is left out with a warning.
    Raises: DataError, LabelMismatchError.
    """
    max_samples = max_samples or {}
    _check_max_samples(max_samples, splits)
    available = find_splits(source, task, dataset_config)
    wanted = [split for split in splits if _is_there(split, available, task, source)]
    raw = {split: _open(split, available, task) for split in wanted}
    for split, dataset in raw.items():
        check_columns(dataset, task, f"split '{split}' of {source}")
    if raw and not task.is_regression:
        task = fill_label_names(task, find_label_names(_train_first(raw, available, task, source), task, source))
    encoded = {split: encode_split(raw[split], task, f"split '{split}' of {source}") for split in wanted}
    return DatasetDict({split: _subset(encoded[split], max_samples.get(split), seed) for split in wanted}), task


def find_splits(source: str, task: Task, dataset_config: str | None = None) -> Mapping[str, Path | Dataset]:
    """Split name -> file of a local folder or dataset of the hub. Raises: DataError where there is nothing."""
    return _local_files(source, task) if is_local(source) else _hub_splits(source, dataset_config)


def load_texts(source: str, task: Task, split: str, *, dataset_config: str | None = None) -> Dataset | None:
    """A split to predict on: its text columns and, as "label", the number of each row.

    Args: source, dataset_config: as of `load_splits`.
    Returns: None, with a warning, where the split is absent.
    Raises: DataError where the split cannot be read or a text is missing.
    """
    try:
        available = find_splits(source, task, dataset_config)
    except DataError as error:
        logger.warning("no split '%s' of task '%s', skipping it: %s", split, task.name, error)
        return None
    if _split_name(split) not in available:
        logger.warning("%s has no split '%s' of task '%s', skipping it", source, split, task.name)
        return None
    dataset, where = _open(split, available, task), f"split '{split}' of {source}"
    check_columns(dataset, task, where, with_label=False)
    return encode_texts(dataset, task, where)


def is_local(source: str) -> bool:
    """Whether `source` means a folder: an existing one, or a text that can be a path but not a hub id."""
    looks_like_path = source in (".", "..") or source.startswith(("./", "../", "~")) or os.path.isabs(source)
    return looks_like_path or source.count("/") > 1 or os.path.isdir(source)


def _check_max_samples(max_samples: Mapping[str, int], splits: Sequence[str]) -> None:
    for split, count in max_samples.items():
        if split not in splits:
            raise DataError(f"max_samples names the split '{split}'; allowed: {', '.join(splits)}")
        if count < 1:
            raise DataError(f"max_samples for split '{split}' is {count}; at least 1 row is needed")


def _local_files(source: str, task: Task) -> dict[str, Path]:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(f"dataset folder '{source}' does not exist; give an existing folder or a hub id (owner/name)")
    subfolder = folder / task.name
    files = _data_files(subfolder if subfolder.is_dir() else folder)
    if not files:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(
            f"dataset folder '{source}' has neither data files in a folder '{task.name}'{nearest(task.name, there)} "
            f"nor of its own; allowed: <split>.{{{','.join(FILE_TYPES)}}}, folders there: {', '.join(there) or 'none'}"
        )
    by_split = {path.stem: path for path in files}
    for path in files:
        if by_split[path.stem] != path:
            raise DataError(f"split '{path.stem}' has two files, {path} and {by_split[path.stem].name}; keep one")
    return by_split


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.removeprefix(".") in FILE_TYPES and path.is_file())


def _hub_splits(source: str, dataset_config: str | None) -> DatasetDict:
    advice = "or point to a local copy with --dataset <folder>"
    try:
        return load_dataset(source, dataset_config)
    except DatasetNotFoundError as error:
        raise DataError(f"dataset '{source}' is not on the hub, or private; check the id, {advice}") from error
    except ConnectionError as error:
        raise DataError(f"no hub in reach to load dataset '{source}' from; check the network, {advice}") from error
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"dataset '{source}' cannot be loaded from the hub ({_reason(error)}); check the id, {advice}"
        ) from error


def _is_there(split: str, available: Mapping[str, Path | Dataset], task: Task, source: str) -> bool:
    if _split_name(split) in available:
        return True
    there = ", ".join(item.name if isinstance(item, Path) else name for name, item in available.items())
    if split not in task.validation_splits[1:]:
        raise DataError(
            f"{source} has no split '{split}' of task '{task.name}'{nearest(split, list(available)) or ';'} "
            f"found: {there}"
        )
    logger.warning("%s has no split '%s' of task '%s', skipping it; found: %s", source, split, task.name, there)
    return False


def _split_name(split: str) -> str:
    return split.partition("[")[0]


def _open(split: str, available: Mapping[str, Path | Dataset], task: Task) -> Dataset:
    name = _split_name(split)
    item = available[name]
    dataset = _read_file(item, task) if isinstance(item, Path) else item
    return dataset if split == name else _slice(dataset, split)


def _slice(dataset: Dataset, split: str) -> Dataset:
    name = _split_name(split)
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"split '{split}' is no slice of the {len(dataset)} rows of '{name}' ({_reason(error)}); write "
            f"{name}[:90%], {name}[90%:] or {name}[1000:2000]"
        ) from error
    rows = [row for part in parts for row in range(part.from_, part.to)]
    if not rows:
        raise DataError(f"split '{split}' has no rows; '{name}' has {len(dataset)}")
    with no_progress_bars():
        return dataset.select(rows, keep_in_memory=True)


def _read_file(path: Path, task: Task) -> Dataset:
    # Texts such as "NA", "007" and "" must stay as they are, and a quote in a tsv is an ordinary character.
    options = {"keep_default_na": False, "converters": dict.fromkeys(task.text_columns, str)}
    if path.suffix == ".tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    # datasets always writes an arrow file first; it goes with the scratch folder.
    with tempfile.TemporaryDirectory() as scratch, no_progress_bars():
        memory = {"cache_dir": scratch, "keep_in_memory": True}
        try:
            if path.suffix == ".parquet":
                return Dataset.from_parquet(str(path), **memory)
            if path.suffix == ".jsonl":
                return Dataset.from_json(str(path), **memory)
            return Dataset.from_csv(str(path), **memory, **options)
        except (DatasetsError, OSError, ValueError, StopIteration) as error:
            raise DataError(
                f"no rows can be read from {path} ({_reason(error)}); give a non-empty {path.suffix[1:]} file"
            ) from error


def _reason(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _train_first(
    raw: Mapping[str, Dataset], available: Mapping[str, Path | Dataset], task: Task, source: str
) -> dict[str, Dataset]:
    # Class ids must not depend on which splits were asked for, so inferring needs the training split in any case.
    train = {split: dataset for split, dataset in raw.items() if split == task.train_split}
    if not train and not task.label_names and _split_name(task.train_split) in available:
        train = {task.train_split: _open(task.train_split, available, task)}
        check_columns(train[task.train_split], task, f"split '{task.train_split}' of {source}")
    return train | dict(raw)


def _subset(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    if count is None or count >= len(dataset):
        return dataset
    with no_progress_bars():
        shuffled = dataset.shuffle(seed=seed, keep_in_memory=True).select(range(count), keep_in_memory=True)
        return shuffled.flatten_indices(keep_in_memory=True)
