"""What the commands share: task, data, model loading, evaluation, and the run's records on disk."""

import dataclasses
import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from datasets import DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lma_hf.cli.parser import to_yaml
from lma_hf.compare.profiling import count_parameters, environment, folder_size_mb
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.glue import custom_task, get_task
from lma_hf.data.labels import align_labels
from lma_hf.data.metrics import compute_metrics
from lma_hf.data.sources import is_local, load_splits
from lma_hf.errors import ConfigError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.checkpoint import append_json_line, check_output_dir, claim_output_dir, save_model, write_json
from lma_hf.training.prediction import predict
from lma_hf.training.trainer import Trainer

logger = logging.getLogger(__name__)
RUN_CONFIG = "run_config.yaml"
RESULTS = "results.json"


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


def load_data(config, *, with_train, seed=42):
    """(splits, task) with the caps of a `DataConfig` applied; splits[task.train_split] only if asked for."""
    task = resolve_task(config)
    caps = dict.fromkeys(task.validation_splits, config.max_eval_samples)
    if with_train:
        caps[task.train_split] = config.max_train_samples
    caps_given = {split: cap for split, cap in caps.items() if cap is not None}
    return load_splits(config.dataset, task, list(caps), max_samples=caps_given, seed=seed)


def load_tokenizer_and_model(name_or_path, what, **kwargs):
    """(tokenizer, sequence classification model). Raises: ConfigError if they cannot be loaded."""
    if is_local(name_or_path) and not Path(name_or_path).expanduser().is_dir():
        raise ConfigError(f"{what} folder {name_or_path!r} does not exist; give a saved model's folder or a hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} {name_or_path!r} cannot be loaded: {reason}") from error
    return tokenizer, model


def label_names_of(model):
    """The model's class names in id order."""
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


def make_accelerator(config, **kwargs):
    """An Accelerator for a config with mixed_precision. Raises: ConfigError if this machine cannot do it."""
    # LMA's statistics are those of the global batch on every process, so DDP has no buffers to broadcast
    warn_of_single_process()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate joins several CPU processes only when told that it is the CPU
    cpu = not torch.accelerator.is_available()
    try:
        return Accelerator(cpu=cpu, mixed_precision=config.mixed_precision, kwargs_handlers=[ddp], **kwargs)
    except ValueError as error:
        raise ConfigError(f"mixed_precision {config.mixed_precision!r}: {error}") from error


def warn_of_single_process():
    """Say so when `accelerate launch --cpu --num_processes N` has started one process (it needs MPI for more)."""
    launched_for_several = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ
    if launched_for_several and "RANK" not in os.environ:
        logger.warning(
            "accelerate launch --cpu has started one process, as it does without an MPI host file; for N processes "
            "use: torchrun --nproc_per_node N -m lma_hf.cli ..."
        )


class Evaluator:
    """Scores models on every validation split of a task, in the dataset's label order.

    Args: tokenized: splits from `tokenize_splits`. mapping: dataset label -> model label, None for regression.
    """

    def __init__(self, tokenized, task, tokenizer, mapping, config, accelerator):
        self.task, self.mapping, self.accelerator = task, mapping, accelerator
        self.loaders = {}
        for split in task.validation_splits:
            if split in tokenized:
                rows = sort_by_length(tokenized[split])
                loader = make_dataloader(rows, tokenizer, config.per_device_eval_batch_size, shuffle=False, seed=0)
                self.loaders[split] = accelerator.prepare(loader)

    def __call__(self, model):
        """Split -> metric -> value in [-1, 1]."""
        results = {}
        for split, loader in self.loaders.items():
            logits, labels = predict(model, loader, self.accelerator)
            if self.mapping is not None:
                logits = logits[:, self.mapping]
            results[split] = compute_metrics(self.task, logits, labels)
        return results

    def score(self, results):
        """The number that selects checkpoints: the task's best metric on its first validation split."""
        return results[self.task.validation_splits[0]][self.task.best_metric]


class TrainingRun:
    """One `teach` or `distill` run: seeds, folder, records. The folder is claimed when training starts."""

    def __init__(self, config, verb):
        check_output_dir(config.output_dir, config.overwrite_output_dir)
        self.config, self.verb, self.output_dir = config, verb, Path(config.output_dir)
        self.accelerator = make_accelerator(
            config,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to or None,
            project_dir=config.output_dir,
        )
        set_seed(config.seed)

    def load(self, name_or_path, what, **kwargs):
        """(tokenizer, model on this process's device)."""
        tokenizer, model = load_tokenizer_and_model(name_or_path, what, **kwargs)
        return tokenizer, model.to(self.accelerator.device)

    def tokenize(self, splits, task, tokenizer, mapping):
        """Tokenized splits; training labels become the model's, validation labels stay the dataset's."""
        if mapping is not None:
            splits = DatasetDict({**splits, task.train_split: align_labels(splits[task.train_split], mapping)})
        return tokenize_splits(splits, task, tokenizer, self.config.max_length)

    def evaluator(self, tokenized, task, tokenizer, mapping):
        """The `Evaluator` of this run's validation splits."""
        return Evaluator(tokenized, task, tokenizer, mapping, self.config, self.accelerator)

    @property
    def total_batch_size(self):
        """Rows of one optimizer step, over all processes."""
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes

    def train_loader(self, tokenized, tokenizer, batch_size):
        """Length-grouped batches, the same global batches on any number of processes."""
        return make_dataloader(
            tokenized,
            tokenizer,
            batch_size,
            shuffle=True,
            seed=self.config.seed,
            total_batch_size=self.total_batch_size,
        )

    def train(self, model, tokenizer, objective, tokenized, evaluator, records):
        """Train, keep the best model in output_dir, and write results.json.

        Args: tokenized: from `tokenize`. evaluator: an `Evaluator`. records: what else belongs into results.json.
        Returns: the results.
        """
        task = evaluator.task
        if self.config.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise ConfigError(f"gradient_checkpointing is true, but {type(model).__name__} has none; drop it")
        if self.config.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        self._open_records()

        def evaluate(wrapped_model, step):
            self.scores = evaluator(wrapped_model)
            self._log({"step": step, "evaluation": self.scores}, step)
            return evaluator.score(self.scores)

        def save_best():
            self.best_scores = self.scores
            if self.accelerator.is_main_process:
                save_model(model, tokenizer, self.output_dir)
            self.accelerator.wait_for_everyone()

        trainer = Trainer(
            model,
            objective,
            self.train_loader(tokenized[task.train_split], tokenizer, self.config.per_device_train_batch_size),
            evaluate=evaluate,
            save_best=save_best,
            log=self._log,
            config=self.config,
            accelerator=self.accelerator,
            activation_parameters=activation_parameters(model),
        )
        set_seed(self.config.seed, device_specific=True)
        return self._close_records(model, task, trainer.train(), records)

    def _open_records(self):
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            claim_output_dir(self.output_dir)
            to_yaml(self.config, self.output_dir / RUN_CONFIG, f"lma-hf {self.verb} {self.output_dir / RUN_CONFIG}")
            write_json(environment(), self.output_dir / "environment.json")
        self.accelerator.wait_for_everyone()
        if self.config.report_to:
            self.accelerator.init_trackers("lma_hf", config={k: str(v) for k, v in vars(self.config).items()})

    def _log(self, values, step):
        if self.accelerator.is_main_process:
            append_json_line(values, self.output_dir / "metrics.jsonl")
        if self.config.report_to:
            self.accelerator.log(_flatten(values), step=step)

    def _close_records(self, model, task, outcome, records):
        results = {
            "task": task.name,
            "best_metric": task.best_metric,
            "metrics": self.best_scores,
            "num_parameters": count_parameters(model),
            "size_mb": folder_size_mb(self.output_dir),
            "training": dataclasses.asdict(outcome),
            "num_processes": self.accelerator.num_processes,
            **records,
        }
        if self.accelerator.is_main_process:
            write_json(results, self.output_dir / RESULTS)
        self.accelerator.end_training()
        return results


def _flatten(values, prefix=""):
    """Nested dicts as "a/b" keys, for trackers."""
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
