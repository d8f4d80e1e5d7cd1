"""A training run with its records on disk."""

import dataclasses
import logging
from functools import partial
from pathlib import Path

from accelerate.utils import (
    DistributedType,
    set_seed,
)
from datasets import DatasetDict

from lma_hf.cli.accelerator import check_trackers, make_accelerator
from lma_hf.cli.evaluator import Evaluator
from lma_hf.cli.loading import check_max_length, load_tokenizer_and_model, unpacked
from lma_hf.cli.parser import to_yaml
from lma_hf.compare.profiling import count_parameters, environment, folder_size_mb
from lma_hf.compression.quantization.fake_quantize import prepared_steps
from lma_hf.compression.quantization.pack import quantized_copy
from lma_hf.compression.quantization.product_noise import state_without_noise
from lma_hf.data.collate import make_dataloader, token_ids, tokenize_splits
from lma_hf.data.labels import align_labels
from lma_hf.distillation.fingerprint import weights_fingerprint
from lma_hf.errors import ConfigError, DataError, TrainingError
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
from lma_hf.training.resume import check_same_config, read_results, rows_digest, run_identity
from lma_hf.training.run_checkpoints import RunCheckpoints, disk_errors_are_ours
from lma_hf.training.trainer import Trainer
from lma_hf.training.used_embeddings import word_embeddings

logger = logging.getLogger(__name__)


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
        overwrite = config.overwrite_output_dir or resumes
        check_output_dir(self.output_dir, overwrite, self._inputs(), resumable=True)
        check_trackers(config.report_to)
        self.accelerator = make_accelerator(
            config,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to or None,
            project_dir=str(self.output_dir),
        )
        if (deepspeed := self.accelerator.state.deepspeed_plugin) is not None:
            # it asks the data loader, whose batches may be smaller at the end of an epoch
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = config.per_device_train_batch_size
        set_seed(config.seed)
        self.contents, self.finished_results = {}, None
        if resumes:
            check_same_config(self._resolved_config(), self.output_dir / RUN_CONFIG)
            self.finished_results = read_results(self.output_dir)

    def _inputs(self):
        """Names or paths of all that the run reads."""
        config, names = self.config, ("student_name_or_path", "unlabelled_dataset", "teacher_cache")
        optional = [getattr(config, name, None) for name in names]
        return [config.dataset, self.source, *getattr(config, "extra_teachers", ()), *filter(None, optional)]

    def load_for_training(self, name_or_path, what, **kwargs):
        """`load`, with a fresh head where the model's does not fit. Raises: ConfigError if that would stay random."""
        train = self.config.train
        if train not in ("all", "activations+head"):
            kwargs |= {"complete": True, "advice": f"train {train} leaves a fresh head random, take activations+head"}
        return self.load(name_or_path, what, ignore_mismatched_sizes=True, **kwargs)

    def load(self, name_or_path, what, **kwargs):
        """(tokenizer, model on this process's device); a model with packed weights is made an ordinary one."""
        tokenizer, model = load_tokenizer_and_model(name_or_path, what, **kwargs)
        model = unpacked(model)
        check_max_length(self.config, model)
        # without its head, which may be a fresh one
        self.contents[f"{what} weights"] = weights_fingerprint(model.base_model)
        return tokenizer, model.to(self.accelerator.device)

    def tokenize(self, splits, task, tokenizer, mapping):
        """Tokenized splits; training labels become the model's, validation labels stay the dataset's.

        Raises: ConfigError if a split is both.
        """
        if task.train_split in task.validation_splits:
            raise ConfigError(
                f"train_split {task.train_split!r} is the validation split too, whose labels are its own; name "
                "two, such as train[:90%] and train[90%:], or the same rows as train[:100%]"
            )
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

    def freeze_(self, model):
        """Freeze what the config leaves as it is. Raises: ConfigError if there are no word embeddings to freeze."""
        if self.config.freeze_embeddings:
            table = word_embeddings(model)
            if table is None:
                raise ConfigError(
                    f"freeze_embeddings is true, but {type(model).__name__} has no one table of word embeddings; "
                    "drop it"
                )
            table.requires_grad_(False)
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
        self.contents["kind of device"] = self.accelerator.device.type  # see `UsedEmbeddings`
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
            token_ids=token_ids(tokenized[task.train_split], tokenizer),
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
        quantized = quantized_copy(model) if prepared_steps(model) else None
        weights = weights if quantized or weights else state_without_noise(model)
        files = save_model(quantized or model, tokenizer, self.output_dir, weights)
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
