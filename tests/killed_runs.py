"""Short runs in processes of their own, to be killed, and what must be equal after they are resumed."""

import hashlib
import json
import os
import subprocess
import sys
import time

import torch

from lma_hf.training.checkpoint_store import CheckpointStore

STEPS = 20
FLAGS = ["--num_layers", "2", "--layer_map", "first", "--learning_rate", "1e-3", "--per_device_train_batch_size", "8"]
FLAGS += ["--calibration_batches", "1", "--max_steps", str(STEPS), "--eval_steps", "5", "--logging_steps", "4"]
FLAGS += ["--save_steps", "3", "--hidden_loss_weight", "0.5"]
TIMES = ("examples_per_second", "train_seconds")


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES}
    return value


def outcome(folder):
    """What must be equal to the bit."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    results = json.loads((folder / "results.json").read_text())
    return weights, without_times(results), [without_times(line) for line in lines]


def start(flags, folder, *more, **variables):
    """A process that runs a command, with environment variables of its own."""
    # another number of threads rounds differently
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **variables}
    command = [sys.executable, "-m", "lma_hf.cli", *flags, "--output_dir", str(folder), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition, process, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def has_checkpoint(folder, step=1):
    return lambda: any(found >= step for found in CheckpointStore(folder / "checkpoints", 2).steps())
