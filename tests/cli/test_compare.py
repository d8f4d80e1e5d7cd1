"""`lma-hf compare` on real runs of a tiny model, on one machine, on Ray and through submitit."""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from lma_hf.cli.__main__ import main
from lma_hf.cli.compare import study_cells
from lma_hf.cli.parser import parse_config
from lma_hf.compare.cells import read_results
from lma_hf.compare.study import CompareConfig
from lma_hf.compare.verify import COMPARED, differences

REPO = Path(__file__).resolve().parents[2]
CELLS = ("reviews/1layer/gelu/seed-1", "reviews/1layer/lma8/seed-1")


@pytest.fixture
def study(tmp_path, data_dir, teacher_dir):
    """Write a study of two cells, with changes, and return its file."""

    def write(**changes):
        common = {"dataset": str(data_dir), "text_columns": ["text"], "max_length": 32, "calibration_batches": 2}
        values = {
            "output_dir": str(tmp_path / "study"),
            "common": {**common, "learning_rate": "2e-3", "max_steps": 12, "per_device_train_batch_size": 16},
            "tasks": {"reviews": {"teacher": str(teacher_dir)}},
            "students": {"1layer": {"num_layers": 1}},
            "activations": {"gelu": {"activation": "gelu"}, "lma8": {"activation": "lma"}},
            "seeds": [1],
        }
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**values, **changes}))
        return str(file)

    return write


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_studies_in_configs_can_be_run(path):
    assert path.read_text().splitlines()[0].startswith("# lma-hf ")
    config = parse_config(CompareConfig, [str(path)], prog="lma-hf compare", description="")
    assert len({cell.name for cell in study_cells(config)}) > 1


def results_in(folder):
    return {result.name: result for result in read_results(folder)}


def assert_same_results(first, second):
    assert results_in(first).keys() == results_in(second).keys() == set(CELLS)
    for name, result in results_in(first).items():
        other = results_in(second)[name]
        assert {key: getattr(result, key) for key in COMPARED} == {key: getattr(other, key) for key in COMPARED}
        assert differences(result.folder, other.folder) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {}}, "unknown key 'task'; the nearest known one is 'tasks'"),
        ({"students": {"a": {"num_layer": 1}}}, "reviews/a/gelu/seed-1: unknown key 'num_layer'.*'num_layers'"),
        ({"students": {"a": {"num_layers": "two"}}}, "reviews/a/gelu/seed-1: num_layers: got 'two', expected int"),
        ({"activations": {"elu": {"activation": "elu"}}}, "'elu'.*gelu"),
        ({"tasks": {"rta": {"teacher": "t"}}, "common": {}}, "unknown task 'rta', did you mean 'rte'"),
        ({"tasks": {"reviews": {}}}, "reviews/1layer/gelu/seed-1: --teacher is missing"),
        ({"baseline": "relu"}, "baseline is 'relu', allowed are the activations gelu, lma8"),
        ({"axes": {"rows": {}}}, "axes: rows is {}"),
        ({"axes": {"activation": {"a": {}}}}, "axes has the name 'activation', which is a column"),
        ({"axes": ["rows"]}, r"axes: got \['rows'\], expected a mapping"),
        ({"seeds": [1, 1]}, "seeds names 1 twice"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"activations": {"a": {"activation": "relu"}, "b": {"activation": "relu"}}}, "have the same options"),
        ({"cells": ["rte/*"]}, "cells names 'rte/\\*', which fits no cell"),
        ({"executor": "cloud"}, "executor: got 'cloud', expected one of local, ray, slurm"),
    ],
)
def test_bad_studies_are_one_line_before_anything_runs(tmp_path, study, capsys, changes, message):
    assert main(["compare", study(**changes)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(message, said[0]), said[0]
    assert not (tmp_path / "study").exists()


def test_a_key_that_stands_twice_and_a_mapping_as_a_flag(tmp_path, study, capsys):
    file = study()
    assert main(["compare", file, "--tasks", "rte"]) == 2
    assert "expected a mapping, in the YAML file" in capsys.readouterr().err
    with open(file, "a") as stream:
        stream.write("students: {b: {num_layers: 1}}\n")
    assert main(["compare", file]) == 2
    assert "key 'students' stands twice" in capsys.readouterr().err


def test_output_dir_that_is_a_file(tmp_path, study, capsys):
    (tmp_path / "study").touch()
    assert main(["compare", study()]) == 2
    assert "study cannot be used" in capsys.readouterr().err


def test_executors_that_are_not_there(tmp_path, study, capsys, monkeypatch):
    for name, extra in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, name, None)
        assert main(["compare", study(), "--executor", extra]) == 2
        assert f"pip install 'lma_hf[{extra}]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_on_one_machine(tmp_path, study, teacher_dir, capsys):
    """Two at a time are equal to one after the other; what failed runs again; cells can be verified."""
    broken = {"reviews": {"teacher": str(tmp_path / "teacher")}}
    assert main(["compare", study(tasks=broken), "--jobs", "2"]) == 1
    said = capsys.readouterr().err
    assert "2 of 2 cells failed, the first is reviews/1layer/" in said
    assert "does not exist; give a saved model's folder or a hub id" in said
    (tmp_path / "teacher").symlink_to(teacher_dir)
    assert main(["compare", study(tasks=broken), "--jobs", "2"]) == 0
    one_by_one = ["--output_dir", str(tmp_path / "one"), "--keep_models", "none", "--latency", "true"]
    assert main(["compare", study(tasks=broken), *one_by_one]) == 0
    assert_same_results(tmp_path / "study", tmp_path / "one")

    # without weights, which the folder does not have any more
    assert all(result.latency_ms > 0 for result in results_in(tmp_path / "one").values())
    results = results_in(tmp_path / "study")
    assert all(result.latency_ms is None for result in results.values())
    assert all(set(result.train_losses) == {"loss", "task_loss", "distill_loss"} for result in results.values())
    folder = results[CELLS[0]].folder
    assert json.loads((folder / "environment.json").read_text())["torch_threads"] == 1
    # the cell's own records and the study's repeat it
    again = ["--output_dir", str(tmp_path / "again")]
    assert main(["distill", str(folder / "run_config.yaml"), *again]) == 0
    metrics = (json.loads((path / "results.json").read_text())["metrics"] for path in (folder, tmp_path / "again"))
    assert next(metrics) == next(metrics)
    capsys.readouterr()
    check = ["--cells", "*/lma8/*", "--verify", "true"]
    assert main(["compare", str(tmp_path / "one" / "study.yaml"), *check]) == 0
    assert f"{CELLS[1]}: equal, bit by bit" in capsys.readouterr().out


@pytest.mark.slow
def test_submitit_gives_the_same_numbers(tmp_path, study):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    assert main(["compare", study()]) == 0
    slurm = {"cluster": "local"}
    flags = ["--executor", "slurm", "--jobs", "2", "--output_dir", str(tmp_path / "submitit")]
    assert main(["compare", study(slurm=slurm), *flags]) == 0
    assert_same_results(tmp_path / "study", tmp_path / "submitit")


@contextmanager
def two_node_cluster(ray, monkeypatch):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_two_ray_nodes_give_the_same_numbers(tmp_path, study, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    assert main(["compare", study()]) == 0
    with two_node_cluster(ray, monkeypatch):
        flags = ["--executor", "ray", "--jobs", "2", "--output_dir", str(tmp_path / "ray")]
        assert main(["compare", study(), *flags]) == 0
    assert_same_results(tmp_path / "study", tmp_path / "ray")


def start_two_cells(file, folder, until):
    """A study in a process of its own, once both its cells have written the file `until`."""
    command = [sys.executable, "-m", "lma_hf.cli", "compare", file, "--jobs", "2"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((folder / "running").glob(f"*/run/{until}"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return driver


@pytest.mark.slow
def test_killed_in_real_runs(tmp_path, study):
    """Kill the driver while its runs go on; the next one takes over what they leave."""
    driver = start_two_cells(study(), tmp_path / "study", "run_config.yaml")
    driver.kill()
    driver.wait()
    assert read_results(tmp_path / "study") == []
    started = {file.parent.name: file.stat().st_ino for file in (tmp_path / "study" / "running").glob("*/log.txt")}
    assert main(["compare", study()]) == 0
    assert len(started) == 2
    assert main(["compare", study(), "--output_dir", str(tmp_path / "whole")]) == 0
    assert_same_results(tmp_path / "study", tmp_path / "whole")


@pytest.mark.slow
def test_stopped_real_runs_go_on_from_their_checkpoints(tmp_path, study):
    """SIGTERM while both train; the same command ends with the bits of a study that was never stopped."""
    common = yaml.safe_load(Path(study()).read_text())["common"] | {"max_steps": 400, "logging_steps": 1}
    file = study(common=common)
    driver = start_two_cells(file, tmp_path / "study", "metrics.jsonl")
    driver.terminate()
    assert driver.wait(60) == 1
    assert read_results(tmp_path / "study") == []
    assert main(["compare", file]) == 0
    logs = [(result.folder / "log.txt").read_text() for result in results_in(tmp_path / "study").values()]
    assert all("going on from step" in log for log in logs)
    assert main(["compare", file, "--output_dir", str(tmp_path / "whole")]) == 0
    assert_same_results(tmp_path / "study", tmp_path / "whole")
