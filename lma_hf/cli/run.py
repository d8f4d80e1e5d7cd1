"""What the commands share: Accelerate, evaluation, and a training run with its records on disk."""

import dataclasses
import datetime
import logging
import os
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    LoggerType,
    set_seed,
)
from datasets import DatasetDict

from lma_hf.cli.loading import check_max_length, load_tokenizer_and_model
from lma_hf.cli.parser import to_yaml
from lma_hf.compare.profiling import count_parameters, environment, folder_size_mb
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.labels import align_labels
from lma_hf.data.metrics import compute_metrics
from lma_hf.errors import ConfigError, DataError, MissingDependencyError, TrainingError
from lma_hf.modeling.modeling_lma import activation_parameters, one_statistics_update
from lma_hf.surgery.delta import save_delta
from lma_hf.surgery.trainable import count_trained, train_only_
from lma_hf.training.checkpoint import (
    DELTA,
    METRICS,
    RESULTS,
    RUN_CONFIG,
    append_json_line,
    check_output_dir,
    claim_output_dir,
    save_model,
    write_json,
    write_whole,
)
from lma_hf.training.prediction import predict
from lma_hf.training.resume import check_same_config, read_results, rows_digest, run_identity, weights_digest
from lma_hf.training.run_checkpoints import RunCheckpoints, disk_errors_are_ours
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
    handlers = [ddp]
    if (timeout_s := getattr(config, "ddp_timeout", None)) is not None:
        handlers.append(InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=timeout_s)))
    # otherwise the precision of an earlier run in this process would stay; there is no public way
    AcceleratorState._reset_state()
    try:
        return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers, **kwargs)
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
            logits, labels = predict(model, loader, self.accelerator)
            if self.mapping is not None:
                logits = logits[:, self.mapping]
            results[split] = compute_metrics(self.task, logits, labels)
        return results

    def score(self, results):
        """The number that selects checkpoints: the task's best metric on its first validation split."""
        return results[self.task.validation_splits[0]][self.task.best_metric]


class TrainingRun:
    """One `teach` or `distill` run: seeds, folder, records. The folder is claimed when training starts.

    Attributes: finished_results: what results.json holds if the run to resume is finished, else None.

    Args: verb: "teach" or "distill". source: the model that the run starts from.
    """

    def __init__(self, config, verb, source):
        self.config, self.verb, self.source = config, verb, source
        self.output_dir = Path(config.output_dir).expanduser()
        # a run to resume may be started anew if it has no checkpoint yet
        resumes = config.resume and (self.output_dir / RUN_CONFIG).is_file()
        check_output_dir(self.output_dir, config.overwrite_output_dir or resumes, [config.dataset, source])
        check_trackers(config.report_to)
        self.accelerator = make_accelerator(
            config,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to or None,
            project_dir=config.output_dir,
        )
        if (deepspeed := self.accelerator.state.deepspeed_plugin) is not None:
            # it asks the data loader, whose batches may be smaller at the end of an epoch
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = config.per_device_train_batch_size
        set_seed(config.seed)
        self.contents, self.finished_results = {}, None
        if resumes:
            check_same_config(self._resolved_config(), self.output_dir / RUN_CONFIG)
            self.finished_results = read_results(self.output_dir)

    def load(self, name_or_path, what, **kwargs):
        """(tokenizer, model on this process's device)."""
        tokenizer, model = load_tokenizer_and_model(name_or_path, what, **kwargs)
        check_max_length(self.config, model)
        self.contents[f"{what} weights"] = weights_digest(model)
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

    def freeze_(self, model):
        """Freeze what the config leaves as it is."""
        if self.config.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        train_only_(model, self.config.train)

    def train(self, model, tokenizer, objective, tokenized, evaluator, records):
        """Train, keep the best model in output_dir, and write results.json.

        Args: tokenized: from `tokenize`. evaluator: an `Evaluator`. records: what else belongs into results.json.
        Returns: the results.
        """
        task = evaluator.task
        if self.config.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise ConfigError(f"gradient_checkpointing is true, but {type(model).__name__} has none; drop it")
        self.contents |= {f"rows of split {name}": rows_digest(rows) for name, rows in tokenized.items()}
        identity = run_identity(self.accelerator.num_processes, self.contents)
        self.checkpoints = RunCheckpoints(self.output_dir, self.config, self.accelerator, identity)
        state = self._open_records()

        def evaluate(wrapped_model, step):
            try:
                self.scores = evaluator(wrapped_model)
            except DataError as error:
                raise TrainingError(f"evaluation at step {step}: {error}; lower --learning_rate") from error
            self._log({"step": step, "evaluation": self.scores}, step)
            return evaluator.score(self.scores)

        def save_best():
            sharded = self.accelerator.distributed_type == DistributedType.FSDP
            # every process has to take part
            weights = self.accelerator.get_state_dict(trainer.model) if sharded else None
            files = self._save(model, tokenizer, weights) if self.accelerator.is_main_process else []
            self.checkpoints.keep_best(self.scores, files)
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
            around_step=partial(one_statistics_update, model),
            after_step=self.checkpoints.after_step,
        )
        set_seed(self.config.seed, device_specific=True)
        if state is not None:
            trainer.load_state_dict(state)
        try:
            with disk_errors_are_ours(self.output_dir), self.checkpoints:
                return self._write_results(model, task, trainer.train(), records)
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _save(self, model, tokenizer, weights):
        """Put the model, and the delta of what was trained, into output_dir. Returns: names of the files."""
        files = save_model(model, tokenizer, self.output_dir, weights)
        if self.config.train != "all":
            named = {"train": self.config.train, "base_model": self.source}
            save_delta(model, self.output_dir / DELTA, **named, state_dict=weights)
            files += [f"{DELTA}/{file.name}" for file in sorted((self.output_dir / DELTA).iterdir())]
        return files

    def _open_records(self):
        """Claim the folder, or put it back to its newest checkpoint and return the trainer's state of then."""
        self.accelerator.wait_for_everyone()
        step = self.checkpoints.find() if self.config.resume else None
        state = None if step is None else self.checkpoints.restore(step)
        if self.config.resume:
            logger.info("%s", "no checkpoint yet: starting anew" if step is None else f"going on from step {step}")
        if step is None and self.accelerator.is_main_process:
            claim_output_dir(self.output_dir)
            self._write_config()
            write_json(environment(), self.output_dir / "environment.json")
        self.accelerator.wait_for_everyone()
        if self.config.report_to:
            self.accelerator.init_trackers("lma_hf", config={k: str(v) for k, v in vars(self.config).items()})
        return state

    def _resolved_config(self):
        precision = self.accelerator.mixed_precision
        return dataclasses.replace(self.config, overwrite_output_dir=False, resume=False, mixed_precision=precision)

    def _write_config(self):
        path = self.output_dir / RUN_CONFIG
        command = f"lma-hf {self.verb} {path} --output_dir ANOTHER_FOLDER"
        write_whole(path, lambda temporary: to_yaml(self._resolved_config(), temporary, command))

    def _log(self, values, step):
        if self.accelerator.is_main_process:
            append_json_line(values, self.output_dir / METRICS)
        if self.config.report_to:
            self.accelerator.log(_flatten(values), step=step)

    def _write_results(self, model, task, outcome, records):
        results = {
            "task": task.name,
            "best_metric": task.best_metric,
            "metrics": self.checkpoints.best_scores,
            "num_parameters": count_parameters(model),
            "num_trained_parameters": count_trained(model),
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
