"""Further texts without labels, on which a student is distilled but not supervised."""

import math

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from lma_hf.data.glue import hub_configuration
from lma_hf.data.sources import load_texts
from lma_hf.distillation.losses import UNLABELLED
from lma_hf.errors import DataError


def add_unlabelled(splits, task, config):
    """(splits, share of the training rows that have a label), with the rows of `unlabelled_dataset` in training.

    Its training split is read, all of it; that needs the task's text columns, and labels there are not looked at.
    Raises: DataError if there is no such split.
    """
    source, labelled = config.unlabelled_dataset, splits[task.train_split]
    if source is None:
        return splits, 1.0
    # a slice, and a configuration, are those of the training data
    split = task.train_split.partition("[")[0]
    dataset_config = hub_configuration(config) if source == config.dataset else None
    texts = load_texts(source, task, split, dataset_config=dataset_config)
    if texts is None:
        raise DataError(
            f"unlabelled_dataset {source!r} has no split '{split}' with texts; give a folder with "
            f"{split}.jsonl (csv, tsv, parquet) or a hub id"
        )
    texts = _subset(texts, config.max_unlabelled_samples, config.seed)
    missing = np.full(len(texts), math.nan if task.is_regression else UNLABELLED)
    columns = {name: texts[name] for name in task.text_columns} | {"label": missing}
    unlabelled = Dataset.from_dict(columns, features=labelled.features)
    together = concatenate_datasets([labelled, unlabelled])
    return DatasetDict({**splits, task.train_split: together}), len(labelled) / len(together)


def _subset(rows, count, seed):
    if count is None or count >= len(rows):
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.select(np.sort(chosen), keep_in_memory=True)
