"""SIGTERM, checkpoints by the clock, and lost processes."""

import os
import signal
import types

import pytest
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType

from lma_hf.errors import ConfigError, LostProcessError, TrainingError, TrainingInterrupted
from lma_hf.training import run_checkpoints
from lma_hf.training.config import TeachConfig
from lma_hf.training.interruption import Sigterm, lost_process_is_an_error
from lma_hf.training.run_checkpoints import RunCheckpoints


def checkpoints(folder, **values):
    config = TeachConfig(task_name="sst2", output_dir=str(folder), model_name_or_path="unused", **values)
    return RunCheckpoints(folder, config, Accelerator(cpu=True), {"num_processes": 1, "versions": {}})


def make_state():
    return {"counters": {"step": 1}}


def test_handler_is_only_there_inside_the_context():
    outside = signal.getsignal(signal.SIGTERM)
    with Sigterm() as sigterm:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert sigterm.received
    assert signal.getsignal(signal.SIGTERM) is outside


def test_sigterm_saves_although_nothing_is_due(tmp_path):
    with checkpoints(tmp_path, save_minutes=None) as run:
        run.after_step(4, make_state)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingInterrupted, match="at step 5; --resume true goes on from step 5"):
            run.after_step(5, make_state)
    assert run.store.steps() == [5]
    assert TrainingInterrupted.exit_code == 143


def test_sigterm_on_a_full_disk_says_where_the_run_stands(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with checkpoints(tmp_path, save_steps=4) as run:
        run.after_step(4, make_state)
        monkeypatch.setattr(run.store, "save", full)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingInterrupted, match="at step 5; --resume true goes on from step 4"):
            run.after_step(5, make_state)


def test_minutes_count_from_the_last_checkpoint(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(run_checkpoints, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    with checkpoints(tmp_path, save_minutes=1.5, save_total_limit=9) as run:
        for step in range(1, 11):
            clock[0] += 40.0
            run.after_step(step, make_state)
    assert run.store.steps() == [3, 6, 9]


def test_sharded_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="do not work with FSDP; use DDP"):
        checkpoints(tmp_path, save_steps=4)
    with checkpoints(tmp_path) as run:
        run.after_step(1, make_state)
    assert signal.getsignal(signal.SIGTERM) is not run.sigterm._note


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:538]\nConnection closed by peer"), LostProcessError),
        (dist.DistBackendError("NCCL error"), LostProcessError),
        (RuntimeError("shapes do not fit"), RuntimeError),
        (TrainingError("output_dir /data/gloo cannot be written"), TrainingError),
    ],
)
def test_only_lost_processes_are_called_so(error, expected):
    with pytest.raises(RuntimeError) as caught, lost_process_is_an_error():
        raise error
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
