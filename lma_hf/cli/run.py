"""What the commands share: Accelerate, evaluation, and a training run with its records on disk."""

import dataclasses
import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, set_seed
from datasets import DatasetDict

from lma_hf.cli.loading import check_max_length, load_tokenizer_and_model
from lma_hf.cli.parser import to_yaml
from lma_hf.compare.profiling import count_parameters, environment, folder_size_mb
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.labels import align_labels
from lma_hf.data.metrics import compute_metrics
from lma_hf.errors import ConfigError, DataError, MissingDependencyError, TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.checkpoint import (
    RESULTS,
    RUN_CONFIG,
    append_json_line,
    check_output_dir,
    claim_output_dir,
    save_model,
    write_json,
)
from lma_hf.training.prediction import predict
from lma_hf.training.trainer import Trainer

logger = logging.getLogger(__name__)


def make_accelerator(config, **kwargs):
    """An Accelerator for a config with mixed_precision. Raises: ConfigError if this machine cannot do it."""
    # LMA's statistics are those of the global batch on every process, so DDP has no buffers to broadcast
    warn_of_single_process()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate joins several CPU processes only when told that it is the CPU
    cpu = not torch.accelerator.is_available()
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # otherwise the precision of an earlier run in this process would stay; there is no public way
    AcceleratorState._reset_state()
    try:
        return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[ddp], **kwargs)
    except ValueError as error:
        raise ConfigError(f"mixed_precision {precision!r}: {error}") from error


def check_trackers(names):
    """Raises: ConfigError or MissingDependencyError if a tracker is unknown or not installed."""
    known = sorted({"all", *(str(tracker.value) for tracker in LoggerType)})
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"report_to names {name!r}, allowed are {', '.join(known)}")
        if name != "all" and name not in available:
            raise MissingDependencyError(
                f"report_to names {name!r}, which is not installed; run pip install {name} (tensorboard: "
                "pip install 'lma_hf[trackers]')"
            )


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
            results[split] = self.metrics(*predict(model, loader, self.accelerator))
        return results

    def metrics(self, logits, labels):
        """Metric -> value. Args: logits: in the model's label order. labels: the dataset's."""
        if self.mapping is not None:
            logits = logits[:, self.mapping]
        return compute_metrics(self.task, logits, labels)

    def score(self, results):
        """The number that selects checkpoints: the task's best metric on its first validation split."""
        return results[self.task.validation_splits[0]][self.task.best_metric]


class TrainingRun:
    """One `teach` or `distill` run: seeds, folder, records. The folder is claimed when training starts.

    Args: verb: "teach" or "distill". source: the model that the run starts from.
    """

    def __init__(self, config, verb, source):
        self.config, self.verb, self.output_dir = config, verb, Path(config.output_dir).expanduser()
        check_output_dir(self.output_dir, config.overwrite_output_dir, [config.dataset, source])
        check_trackers(config.report_to)
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
        check_max_length(self.config, model)
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

    def train_loader(self, tokenized, tokenizer, batch_size, tokens_per_batch=None):
        """Length-grouped batches, the same global batches on any number of processes."""
        return make_dataloader(
            tokenized,
            tokenizer,
            batch_size,
            shuffle=True,
            seed=self.config.seed,
            total_batch_size=self.total_batch_size,
            tokens_per_batch=tokens_per_batch,
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
            try:
                self.scores = evaluator(wrapped_model)
            except DataError as error:
                raise TrainingError(f"evaluation at step {step}: {error}; lower --learning_rate") from error
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
            self.train_loader(
                tokenized[task.train_split],
                tokenizer,
                self.config.per_device_train_batch_size,
                self.config.tokens_per_batch,
            ),
            evaluate=evaluate,
            save_best=save_best,
            log=self._log,
            config=self.config,
            accelerator=self.accelerator,
            activation_parameters=activation_parameters(model),
        )
        set_seed(self.config.seed, device_specific=True)
        try:
            return self._write_results(model, task, trainer.train(), records)
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _open_records(self):
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            claim_output_dir(self.output_dir)
            self._write_config()
            write_json(environment(), self.output_dir / "environment.json")
        self.accelerator.wait_for_everyone()
        if self.config.report_to:
            self.accelerator.init_trackers("lma_hf", config={k: str(v) for k, v in vars(self.config).items()})

    def _write_config(self):
        path = self.output_dir / RUN_CONFIG
        resolved = dataclasses.replace(
            self.config, overwrite_output_dir=False, mixed_precision=self.accelerator.mixed_precision
        )
        to_yaml(resolved, path, f"lma-hf {self.verb} {path} --output_dir ANOTHER_FOLDER")

    def _log(self, values, step):
        if self.accelerator.is_main_process:
            append_json_line(values, self.output_dir / "metrics.jsonl")
        if self.config.report_to:
            self.accelerator.log(_flatten(values), step=step)

    def _write_results(self, model, task, outcome, records):
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
        return results


def _flatten(values, prefix=""):
    """Nested dicts as "a/b" keys, for trackers."""
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
