"""Two processes with half the batch each train as one process does (LMA.md, defect 5)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modeling.process_worker import CASES, LENGTHS, STEPS, build, train
from modeling.tiny_models import statistics

TESTS = Path(__file__).resolve().parents[1]
WORLD_SIZE = 2


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What each of two real processes ended with: a list over ranks of case -> statistics and weights."""
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    worker = Path(__file__).with_name("process_worker.py")
    commands = [[sys.executable, worker, str(rank), str(WORLD_SIZE), folder] for rank in range(WORLD_SIZE)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(case, of_ranks):
    model = build(case).train()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, slice(0, len(LENGTHS)), max(LENGTHS))
    for of_rank in of_ranks:
        torch.testing.assert_close(of_rank[case]["statistics"], statistics(model), rtol=0, atol=1e-5)
        torch.testing.assert_close(of_rank[case]["weights"], dict(model.state_dict()), rtol=0, atol=1e-5)
    moved = [key for key, value in model.state_dict().items() if (value - start[key]).abs().max() > 1e-3]
    assert any(key.endswith("slope") for key in moved)
    assert any(key.endswith("running_mean") for key in moved)


@pytest.mark.parametrize("case", CASES)
def test_every_step_updates_the_statistics_once(case, of_ranks):
    calls = STEPS * (2 if case.startswith("albert") else 1)
    for of_rank in of_ranks:
        counts = [value.item() for key, value in of_rank[case]["statistics"].items() if "num_batches" in key]
        assert set(counts) == {calls}


@pytest.mark.parametrize("case", CASES)
def test_ranks_see_different_tokens_but_agree_exactly(case, of_ranks):
    first, *others = of_ranks
    for other in others:
        torch.testing.assert_close(other[case], first[case], rtol=0, atol=0)
    # without the exchange the halves would differ by far more than the tolerance above
    model = build(case).train()
    train(model, slice(0, 8), 32)
    own = statistics(model)
    assert max((own[key] - value).abs().max() for key, value in first[case]["statistics"].items()) > 1e-4
