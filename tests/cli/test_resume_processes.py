"""Two processes: resumed to the bit, stopped together by SIGTERM, and one of them killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from killed_runs import FLAGS, has_checkpoint, outcome, start, wait_for

from lma_hf.cli.__main__ import main
from lma_hf.training.checkpoint_store import CheckpointStore

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def flags(data_flags, teacher_dir):
    more = ["--per_device_train_batch_size", "4", "--save_steps", "2", "--ddp_timeout", "30"]
    return ["distill", *data_flags, "--teacher", str(teacher_dir), *FLAGS, *more]


def start_two(flags, folder, *more):
    """Both processes, without torchrun, which would end the one when the other is gone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(flags, folder, *more, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def finish(processes, timeout_s=90):
    errors = [process.communicate(timeout=timeout_s)[1] for process in processes]
    return [process.returncode for process in processes], errors


def newest(folder):
    return max(CheckpointStore(folder / "checkpoints", 2).steps())


def test_killed_process_ends_the_other_and_two_resume(tmp_path, flags, capsys):
    assert finish(start_two(flags, tmp_path / "whole"))[0] == [0, 0]
    folder = tmp_path / "run"
    processes = start_two(flags, folder)
    wait_for(has_checkpoint(folder, 4), processes[0])
    processes[1].kill()
    killed = time.monotonic()
    codes, errors = finish(processes)
    assert time.monotonic() - killed < 60
    assert codes == [1, -signal.SIGKILL]
    assert "lma-hf: error: another process of this run ended or does not answer" in errors[0].splitlines()[-1]
    assert "Traceback" not in errors[0]

    assert main([*flags, "--output_dir", str(folder), "--resume", "true"]) == 2
    assert "num_processes: 1, was 2" in capsys.readouterr().err
    assert finish(start_two(flags, folder, "--resume", "true"))[0] == [0, 0]
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_sigterm_to_one_process_stops_both(tmp_path, flags):
    processes = start_two(flags, tmp_path / "run")
    wait_for(has_checkpoint(tmp_path / "run"), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = finish(processes)
    assert codes == [143, 143]
    for error in errors:
        assert f"stopped by SIGTERM at step {newest(tmp_path / 'run')}" in error


def test_killed_process_under_torchrun(tmp_path, flags):
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "lma_hf.cli", *flags, "--output_dir", str(folder)]
    process = subprocess.Popen(launch, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(has_checkpoint(folder, 4), process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    killed = time.monotonic()
    (code,), (errors,) = finish([process])
    assert time.monotonic() - killed < 60
    assert code != 0
    assert "Signal 9 (SIGKILL)" in errors
    assert subprocess.run([*launch, "--resume", "true"], capture_output=True, timeout=120).returncode == 0
