"""From a configuration to task, data, tokenizer and model, with their labels matched."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lma_hf.data.glue import custom_task, get_task
from lma_hf.data.labels import label_mapping
from lma_hf.data.sources import is_local, load_splits
from lma_hf.errors import ConfigError, LabelMismatchError


def resolve_task(config):
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
    task = get_task(config.task_name)
    if config.train_split:
        task = dataclasses.replace(task, train_split=config.train_split)
    if config.validation_split:
        task = dataclasses.replace(task, validation_splits=(config.validation_split,))
    return task


def load_data(config, *, with_train):
    """(splits, task) with the caps of a `DataConfig` applied; splits[task.train_split] only if asked for."""
    task = resolve_task(config)
    caps = dict.fromkeys(task.validation_splits, config.max_eval_samples)
    if with_train:
        caps[task.train_split] = config.max_train_samples
    caps_given = {split: cap for split, cap in caps.items() if cap is not None}
    # GLUE on the hub has a configuration a task
    dataset_config = config.task_name or config.dataset_config
    return load_splits(
        config.dataset, task, list(caps), dataset_config=dataset_config, max_samples=caps_given, seed=config.seed
    )


def load_tokenizer_and_model(name_or_path, what, **kwargs):
    """(tokenizer, sequence classification model in float32). Raises: ConfigError if they cannot be loaded."""
    if is_local(name_or_path):
        name_or_path = str(Path(name_or_path).expanduser())
        if not Path(name_or_path).is_dir():
            raise ConfigError(
                f"{what} folder {name_or_path!r} does not exist; give a saved model's folder or a hub id"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        # half precision is autocast's business; masters stay in float32
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path, dtype=torch.float32, **kwargs)
    except Exception as error:  # a damaged file makes the loaders raise nearly anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} {name_or_path!r} cannot be loaded: {type(error).__name__}: {reason}") from error
    return tokenizer, model


def label_names_of(model):
    """The model's class names in id order."""
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


def labels_of_model(model, task, dataset, name):
    """Dataset label -> model label, None for regression. Raises: LabelMismatchError if they cannot be matched."""
    if task.is_regression:
        if model.config.num_labels != 1:
            raise LabelMismatchError(
                f"dataset {dataset} has numbers as labels but model {name} has the classes {label_names_of(model)}; "
                "use a model that was trained for regression"
            )
        return None
    return label_mapping(task.label_names, label_names_of(model), dataset=dataset, model=name)


def check_max_length(config, model):
    """Raises: ConfigError if the model has too few positions for `max_length`."""
    positions = model.config.max_position_embeddings
    if model.config.model_type in ("roberta", "mpnet"):
        # their positions start behind the padding's
        positions -= model.config.pad_token_id + 1
    if config.max_length > positions:
        raise ConfigError(f"max_length is {config.max_length}, the model allows at most {positions}")
