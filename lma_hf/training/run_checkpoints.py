"""When a run's checkpoints are written, what they hold, and how a run is put back to one."""

import contextlib
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError

from lma_hf.errors import ConfigError, TrainingError, TrainingInterrupted
from lma_hf.training.checkpoint import METRICS, remove_leftovers
from lma_hf.training.checkpoint_store import CheckpointStore, hold
from lma_hf.training.interruption import Agreement, Sigterm
from lma_hf.training.resume import check_same_run

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"


class RunCheckpoints:
    """The checkpoints of one run on any number of processes, of which the first writes, beside the training.

    Args: config: a `TrainConfig`. identity: from `run_identity`.
    Raises: ConfigError if checkpoints are asked for where every process holds a part of the model.
    """

    def __init__(self, output_dir, config, accelerator, identity):
        self.output_dir, self.config, self.accelerator = Path(output_dir), config, accelerator
        self.store = CheckpointStore(self.output_dir / FOLDER, config.save_total_limit)
        self.identity, self.sigterm = identity, Sigterm()
        self.best_scores, self.model_files, self.last_step = None, [], None
        self.writer, self.writing = ThreadPoolExecutor(max_workers=1), None
        self.enabled = accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if not self.enabled and (config.resume or config.save_steps):
            raise ConfigError(
                f"resume and save_steps do not work with {accelerator.distributed_type.value}; use DDP, or drop them"
            )

    def __enter__(self):
        if self.enabled:
            self.agreement = Agreement(2, self.config.ddp_timeout)
            self.last = time.monotonic()
            self.sigterm.__enter__()
        return self

    def __exit__(self, *exception):
        if not self.enabled:
            return
        self._finish_writing()
        self.writer.shutdown()
        self.sigterm.__exit__(*exception)
        if exception[0] is None:
            self.agreement.finish()

    def keep_best(self, scores, model_files):
        """Remember what belongs to the best model: its scores, and the names of its files below output_dir."""
        self.best_scores, self.model_files = scores, model_files

    def after_step(self, step, make_state):
        """Write a checkpoint if one is due, or if SIGTERM came; all processes call this after every step.

        Args: make_state: () -> what the trainer needs to go on, called on every process.
        Raises: TrainingInterrupted after SIGTERM.
        """
        if not self.enabled:
            return
        minutes = self.config.save_minutes
        late = minutes is not None and time.monotonic() - self.last >= 60 * minutes
        # the clock of the first process counts
        stop, due = self.agreement([int(self.sigterm.received), int(late and self.accelerator.is_main_process)])
        if stop or due or (self.config.save_steps and step % self.config.save_steps == 0):
            self._save(step, make_state())
        if stop:
            self._finish_writing()
            # no process ends, and takes the others with it, before the first is done
            self.accelerator.wait_for_everyone()
            since = "the beginning" if self.last_step is None else f"step {self.last_step}"
            raise TrainingInterrupted(f"stopped by SIGTERM at step {step}; --resume true goes on from {since}")

    def _save(self, step, state):
        """Start to write a checkpoint. What is written is a copy, since the training goes on meanwhile."""
        self._finish_writing()
        if self.accelerator.is_main_process:
            state = on_cpu({**state, "best_scores": self.best_scores, "model_files": self.model_files})
            names = [name for name in (METRICS, *self.model_files) if (self.output_dir / name).is_file()]
            files = hold(self.output_dir, names)
            self.writing = step, self.writer.submit(self.store.save, step, state, files, self.identity)
        self.last = time.monotonic()

    def _finish_writing(self):
        """Wait for the checkpoint under way; if it could not be written the run goes on, and says so."""
        if self.writing is None:
            return
        (step, outcome), self.writing = self.writing, None
        try:
            outcome.result()
            self.last_step = step
        except OSError as error:
            kept = "none before it" if self.last_step is None else f"the one of step {self.last_step} is kept"
            logger.warning("the checkpoint of step %d could not be written (%s); %s", step, error, kept)

    def find(self):
        """Step of the checkpoint to go on from, on every process; None if there is none."""
        found = [None, None]
        if self.accelerator.is_main_process:
            try:
                found = [self.store.newest(), None]
            except Exception as error:  # raised on every process, so that none waits for the first
                found = [None, error]
        step, error = broadcast_object_list(found)
        if error is not None:
            raise error
        return step

    def restore(self, step):
        """Put output_dir back to the checkpoint of a step.

        Returns: the trainer's state. Raises: ConfigError if the checkpoint is that of another run.
        """
        state, identity, files = self.store.load(step)
        check_same_run(self.identity, identity, self.output_dir)
        self.keep_best(state["best_scores"], state["model_files"])
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._restore_files(files)
            self.store.drop_after(step)
        self.accelerator.wait_for_everyone()
        self.last_step = step
        return state

    def _restore_files(self, files):
        remove_leftovers(self.output_dir)
        # lines after the checkpoint will be written again
        (self.output_dir / METRICS).unlink(missing_ok=True)
        for name, file in files.items():
            target = self.output_dir / name
            target.parent.mkdir(exist_ok=True)
            temporary = self.output_dir / f".{file.name}.saving"
            shutil.copyfile(file, temporary)
            os.replace(temporary, target)


def on_cpu(value):
    """Copies of all tensors in nested dicts, lists and tuples, on the CPU."""
    if isinstance(value, dict):
        return {key: on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_cpu, value))
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def disk_errors_are_ours(output_dir):
    """Raises: TrainingError where a file of the run cannot be written, for example because the disk is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # those of a tracker's network have no number
        if isinstance(error, OSError) and error.errno is None:
            raise
        raise TrainingError(
            f"output_dir {output_dir} cannot be written: {' '.join(str(error).split())}; what was written before is "
            "whole; make room, then go on with --resume true"
        ) from error
