"""One process with 32 rows, two with 16, four accumulated batches of 8: the same losses, gradients and weights."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from training.exactness_worker import PREDICTED, cases, student_and_objective, train

TESTS = Path(__file__).resolve().parents[1]
ONE = {(count, statistics): None for count, statistics, _ in cases(1)}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What each of two real processes ended with."""
    folder = tmp_path_factory.mktemp("exactness")
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("exactness_worker.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-12000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@cache
def whole(count, statistics):
    """One process that takes every step's rows at once."""
    return train(count, statistics, 1)


def assert_same(found, expected):
    for name in ("lines", "gradients", "weights", "projections"):
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", cases(2), ids=str)
def test_two_processes_are_one(case, of_ranks):
    for results, _ in of_ranks:
        assert_same(results[case], whole(*case[:2]))


@pytest.mark.parametrize("case", [case for case in cases(1) if case[2] > 1], ids=str)
def test_accumulated_batches_are_one(case):
    assert_same(train(*case), whole(*case[:2]))


@pytest.mark.parametrize("case", cases(2), ids=str)
def test_processes_agree_exactly(case, of_ranks):
    (first, _), (second, _) = of_ranks
    for name in ("lines", "gradients", "weights", "projections"):
        torch.testing.assert_close(second[case][name], first[case][name], rtol=0, atol=0)


def test_the_frozen_teacher_is_never_wrapped(of_ranks):
    for results, _ in of_ranks:
        for result in results.values():
            assert result["wrapped"] == [*["DistributedDataParallel"] * 2, "BertForSequenceClassification"]


def test_the_cases_tell_losses_and_statistics_apart():
    """Without this the equalities above could be those of a model that does not move."""
    result = whole(69, "running")
    assert result["lines"].shape == (6, 9)
    assert (result["lines"][:, 2:8].diff(dim=0).abs() > 1e-4).all()
    start = student_and_objective("running")[0].state_dict()
    moved = {name for name, value in result["weights"].items() if (value - start[name]).abs().max() > 1e-3}
    assert {name.rpartition(".")[2] for name in moved} >= {"running_mean", "running_std", "slope", "weight"}


@pytest.mark.parametrize("count", PREDICTED)
def test_every_row_is_predicted_once(count, of_ranks):
    for _, predictions in of_ranks:
        np.testing.assert_array_equal(predictions[count][:, 0], np.arange(count))
