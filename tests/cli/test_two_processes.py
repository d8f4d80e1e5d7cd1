"""The same run on one process and, through the launchers and the shipped configs, on two."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from torch.testing import assert_close

from lma_hf.cli.__main__ import main

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs" / "accelerate"


def share_apart(first, second, atol=1e-5):
    """Share of all numbers in two state dicts that differ by more than `atol`."""
    apart = [((first[name] - second[name]).abs() > atol).flatten() for name in first]
    return torch.cat(apart).float().mean().item()


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def accelerate(config, *flags):
    return ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml"), *flags]


def run_all(*commands):
    """Run several commands at the same time, to a good end."""
    processes = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


# half of the run minimises what happens inside, after a warm-up; then only labels and logits
FEATURES = ["--feature_stage", "0.5", "--hidden_loss_weight", "1", "--attention_loss_weight", "0.1"]
FEATURES += ["--relation_loss_weight", "0.1", "--activation_warmup_steps", "3"]


@pytest.mark.parametrize(
    ("statistics", "losses", "launcher"),
    [
        pytest.param("batch", [], TORCHRUN, marks=pytest.mark.extended, id="batch-torchrun"),
        pytest.param("running", FEATURES, accelerate("cpu_2_processes"), id="running-accelerate"),
    ],
)
def test_two_processes_give_the_weights_of_one(tmp_path, data_flags, teacher_dir, statistics, losses, launcher):
    common = [*data_flags, "--teacher", str(teacher_dir), "--num_layers", "2", "--statistics", statistics, *losses]
    common += ["--max_steps", "4", "--eval_steps", "4", "--calibration_batches", "2", "--learning_rate", "5e-5"]

    def flags(name, batch_size):
        return [*common, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(batch_size)]

    assert main(["distill", *flags("one", 16)]) == 0
    assert main(["distill", *flags("half", 8)]) == 0
    run_all([*launcher, "-m", "lma_hf.cli", "distill", *flags("two", 8)])

    results = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")}
    assert [results[name]["num_processes"] for name in ("one", "two")] == [1, 2]
    assert results["one"]["metrics"] == results["two"]["metrics"]
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "half")}
    for name in weights["one"]:
        if "running_" in name:
            assert_close(weights["two"][name], weights["one"][name], rtol=0, atol=1e-5)
    # AdamW steps by the sign of a gradient that is rounding alone, so single weights may differ by twice the rate;
    # tests/modeling/test_processes.py has the strict comparison, with SGD
    assert share_apart(weights["one"], weights["two"]) < 0.005
    assert share_apart(weights["one"], weights["half"]) > 0.1


@pytest.mark.extended
def test_two_processes_train_the_same_quantized_student(tmp_path, data_flags, teacher_dir):
    common = [*data_flags, "--teacher", str(teacher_dir), "--num_layers", "2", "--quantize", "int4"]
    common += ["--max_steps", "4", "--eval_steps", "4", "--logging_steps", "1", "--calibration_batches", "2"]

    def flags(name, batch_size):
        return [*common, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(batch_size)]

    assert main(["distill", *flags("one", 16)]) == 0
    run_all([*TORCHRUN, "-m", "lma_hf.cli", "distill", *flags("two", 8)])
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[entry["loss"] for entry in map(json.loads, found) if "loss" in entry] for found in lines]
    assert len(losses[0]) == 4
    # rounding may send a weight near the middle of two levels to either
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len({round(loss, 4) for loss in losses[0]}) == 4


@pytest.mark.slow
def test_accelerate_launch_runs_the_script(tmp_path, data_flags, teacher_dir):
    output = ["--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student"), "--num_layers", "2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = str(REPO / "scripts" / "distill.py")
    done = subprocess.run(
        [*launch, script, *data_flags, *output, "--max_steps", "2"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "student" / "results.json").read_text())
    # accelerate's launcher starts a single CPU process unless it is given an MPI host file, and we must say so
    if results["num_processes"] == 1:
        assert "torchrun" in done.stderr


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_every_config(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == (1 if file.stem == "cpu" else 2)
    assert config.num_machines == (2 if file.stem == "multi_node" else 1)
    kind = {"cpu": "NO", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}.get(file.stem, "MULTI_GPU")
    assert config.distributed_type.value == kind
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    # the first lines say how to use it, and where it could not be run
    assert f"accelerate launch --config_file configs/accelerate/{file.name}" in " ".join(head)
    assert ("Not run" in " ".join(head)) == (file.stem in ("ddp", "fsdp2", "deepspeed_zero2"))


@pytest.mark.slow
def test_one_process_two_and_two_nodes_log_the_same_losses(tmp_path, data_flags, teacher_dir):
    flags = ["-m", "lma_hf.cli", "distill", *data_flags, "--teacher", str(teacher_dir), "--num_layers", "2"]
    flags += ["--max_steps", "3", "--logging_steps", "1", "--calibration_batches", "2"]

    def output(name, batch_size):
        return [*flags, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(batch_size)]

    run_all([*accelerate("cpu"), *output("cpu", 16)])
    run_all([*accelerate("cpu_2_processes"), *output("cpu_2_processes", 8)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    nodes = [accelerate("multi_node", "--machine_rank", rank, *address) for rank in ("0", "1")]
    run_all(*([*node, *output("multi_node", 8)] for node in nodes))

    def losses(name):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return torch.tensor([line["loss"] for line in lines if "loss" in line])

    assert len(losses("cpu")) == 3
    for name in ("cpu_2_processes", "multi_node"):
        assert_close(losses(name), losses("cpu"), rtol=0, atol=1e-5)
        assert json.loads((tmp_path / name / "results.json").read_text())["num_processes"] == 2
