"""Running cells: nothing is lost, nothing is done twice, whatever is killed; the runs themselves are stand-ins."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import study_worker

from lma_hf.compare import cell_run
from lma_hf.compare.cell_run import BUSY, run_cell
from lma_hf.compare.cells import read_results
from lma_hf.compare.same_options import check_same_options
from lma_hf.compare.study_run import job_of, run_cells
from lma_hf.compare.verify import differences, verify_cells
from lma_hf.errors import ConfigError, TrainingError


@pytest.fixture(autouse=True)
def real_distill_afterwards(monkeypatch):
    monkeypatch.setattr(cell_run, "DISTILL", cell_run.DISTILL)


def starts(folder):
    """Name of a cell, with commas -> how often it was started."""
    file = folder / "starts.txt"
    return Counter(line.split()[0] for line in file.read_text().splitlines()) if file.is_file() else Counter()


def pids(folder):
    return [int(line.split()[1]) for line in (folder / "starts.txt").read_text().splitlines()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_complete(folder, cells):
    """Every cell is there, whole, and nothing else is."""
    results = read_results(folder)
    assert {result.name for result in results} == {cell.name for cell in cells}
    assert all(result.score == result.seed / 8 for result in results)
    assert not (folder / "running").exists()
    assert len((folder / "cells.csv").read_text().splitlines()) == len(cells) + 1


def test_every_cell_runs_once_and_finished_ones_are_skipped(tmp_path):
    config, cells = study_worker.make_study(tmp_path, jobs=8)
    run_cells(config, cells[:5])
    run_cells(config, cells)
    check_complete(tmp_path, cells)
    assert set(starts(tmp_path).values()) == {1}
    folder = tmp_path / "cells" / cells[0].name
    assert (folder / "log.txt").read_text() == "training: 100%\n"
    assert f"output_dir: {folder}\n" in (folder / "run_config.yaml").read_text()
    assert read_results(tmp_path)[0].scores == {"accuracy": 0.125, "other/accuracy": 0.5}


def test_failed_cells_are_reported_while_others_go_on_and_run_again_on_restart(tmp_path):
    config, cells = study_worker.make_study(tmp_path, jobs=4)
    (tmp_path / "fail").touch()
    assert re.match(r"4 of 8 cells failed.*relu.*the disk is full", run_cells(config, cells))
    assert {result.activation for result in read_results(tmp_path)} == {"gelu"}
    logs = sorted((tmp_path / "failed").iterdir())
    assert logs[0].name == "rte,small,relu,seed-1.log"
    assert logs[0].read_text() == "training: 100%\nlma-hf: error: the disk is full\n"
    (tmp_path / "fail").unlink()
    assert run_cells(config, cells) is None
    check_complete(tmp_path, cells)
    assert list((tmp_path / "failed").iterdir()) == []
    assert all(count == 1 + ("relu" in name) for name, count in starts(tmp_path).items())


def stop_midway(job):
    """Start a cell and stop it in its run. Returns: what the runner says."""
    stop, answers = threading.Event(), []
    thread = threading.Thread(target=lambda: answers.append(run_cell(job, stop)))
    thread.start()
    wait_until(lambda: (job.running / "run" / "checkpoints").is_dir())
    stop.set()
    thread.join(10)
    return answers[0]


def test_stopped_cell_goes_on_where_it_was(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    job = job_of(config, cells[0])
    assert stop_midway(job) == "stopped"
    assert not is_alive(pids(tmp_path)[0])
    assert not (tmp_path / "cells").exists()
    # as if it had trained for 100 seconds, and stood still for an hour
    for name, ago in (("settings.yaml", 3700), ("run/metrics.jsonl", 3600)):
        (job.running / name).touch()
        os.utime(job.running / name, (time.time() - ago, time.time() - ago))
    assert run_cell(job) is None
    first, second = (tmp_path / "starts.txt").read_text().splitlines()
    assert "--resume" not in first
    assert second.endswith("--resume true")
    (result,) = read_results(tmp_path)
    assert 100 < result.wall_seconds < 110
    assert not (result.folder / "checkpoints").exists()


def test_stopped_cell_starts_anew_with_other_options(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    stop_midway(job_of(config, cells[0]))
    changed = replace(cells[0], options={**cells[0].options, "learning_rate": 1e-3})
    assert run_cell(job_of(config, changed)) is None
    assert "--resume" not in (tmp_path / "starts.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_cell_that_something_else_has_ended_is_reported_and_goes_on(tmp_path, number):
    config, cells = study_worker.make_study(tmp_path)
    job, answers = job_of(config, cells[0]), []
    thread = threading.Thread(target=lambda: answers.append(run_cell(job)))
    thread.start()
    log = job.running / "log.txt"
    wait_until(lambda: log.is_file() and b"100%" in log.read_bytes())
    os.kill(pids(tmp_path)[0], number)
    thread.join(10)
    assert answers == [f"ended by signal {int(number)}; its last line: training: 100%"]
    assert run_cell(job) is None
    assert (tmp_path / "starts.txt").read_text().endswith("--resume true\n")


def test_failed_cell_goes_on_from_its_checkpoint_where_it_has_one(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    job = job_of(config, cells[1])
    (tmp_path / "fail").touch()
    assert "the disk is full" in run_cell(job)
    assert not job.running.exists()
    (tmp_path / "checkpoint").touch()
    assert "the disk is full" in run_cell(job)
    (tmp_path / "fail").unlink()
    assert run_cell(job) is None
    assert ["--resume" in line for line in (tmp_path / "starts.txt").read_text().splitlines()] == [False, False, True]


def test_a_cell_that_somebody_else_runs_can_be_left_to_them(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    job = job_of(config, cells[0])
    thread = threading.Thread(target=run_cell, args=(job,))
    thread.start()
    wait_until(lambda: starts(tmp_path).total() == 1)
    assert run_cell(replace(job, wait=False)) == BUSY
    thread.join()
    assert run_cell(replace(job, wait=False)) is None
    assert starts(tmp_path).total() == 1


def test_two_drivers_of_one_study_share_its_cells(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    driver = start_driver(tmp_path, 1)
    wait_until(lambda: starts(tmp_path).total() == 1)
    run_cells(config, cells)
    driver.wait(60)
    driver.stderr.close()
    check_complete(tmp_path, cells)
    assert set(starts(tmp_path).values()) == {1}
    drivers = Counter(line.split()[2] for line in (tmp_path / "starts.txt").read_text().splitlines())
    assert min(drivers[str(os.getpid())], drivers[str(driver.pid)]) > 1


def test_several_runners_of_one_cell_run_it_once(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    threads = [threading.Thread(target=run_cell, args=(job_of(config, cells[0]),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert starts(tmp_path).total() == 1
    assert read_results(tmp_path)[0].name == cells[0].name


def test_a_run_with_other_options_is_not_taken_over(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    job = job_of(config, cells[0])
    (job.running / "run").mkdir(parents=True)
    (job.running / "settings.yaml").write_text("activation: relu\n")
    (job.running / "run" / "results.json").write_text("{}")
    assert run_cell(job) is None
    assert starts(tmp_path).total() == 1


@pytest.mark.parametrize("keep", ["all", "first_seed", "none"])
def test_models_are_discarded_once_their_hash_is_recorded(tmp_path, keep):
    config, cells = study_worker.make_study(tmp_path, keep_models=keep, jobs=2, seeds=[5, 3], tasks={"rte": None})
    cells = [cell for cell in cells if cell.activation == "gelu"]
    run_cells(config, cells)
    kept = {result.seed for result in read_results(tmp_path) if (result.folder / "model.safetensors").is_file()}
    assert kept == {"all": {5, 3}, "first_seed": {5}, "none": set()}[keep]
    hashes = {result.weights_sha256 for result in read_results(tmp_path)}
    assert len(hashes) == 2
    discarded = next((result.folder for result in read_results(tmp_path) if result.seed == 3), None)
    assert (discarded / "tokenizer.json").exists() == (keep == "all")
    assert (discarded / "config.json").exists()


def test_a_finished_cell_is_not_taken_for_one_with_other_options(tmp_path):
    config, cells = study_worker.make_study(tmp_path)
    run_cells(config, cells[:1])
    changed = replace(cells[0], options={**cells[0].options, "learning_rate": 1e-3})
    with pytest.raises(ConfigError, match=r"was run with learning_rate None, and the study says 0\.001"):
        check_same_options(tmp_path, [changed])
    check_same_options(tmp_path, [replace(cells[0], options={**cells[0].options, "save_minutes": 1.0})])
    moved = replace(cells[0], options={**cells[0].options, "dataset": "elsewhere"})
    with pytest.raises(ConfigError, match="was run with dataset None"):
        check_same_options(tmp_path, [moved])
    check_same_options(tmp_path, [moved], moved=True)


def test_a_finished_cell_may_have_an_older_default(tmp_path, caplog):
    config, cells = study_worker.make_study(tmp_path)
    run_cells(config, cells[:2])
    for cell in cells[:2]:
        file = tmp_path / "cells" / cell.name / "run_config.yaml"
        file.write_text(file.read_text() + "warmup_ratio: 0.06125\n")
    check_same_options(tmp_path, cells)
    assert "2 finished cells have warmup_ratio 0.06125, which is now" in caplog.text


def test_verification_compares_scores_losses_and_weights(tmp_path, capsys):
    config, cells = study_worker.make_study(tmp_path)
    with pytest.raises(ConfigError, match="not finished"):
        verify_cells(config, cells[:1])
    run_cells(config, cells[:1])
    verify_cells(config, cells[:1])
    assert f"{cells[0].name}: equal, bit by bit" in capsys.readouterr().out
    folder = tmp_path / "cells" / cells[0].name
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.25", "0.26"))
    with pytest.raises(TrainingError, match="1 of 1 cells differ"):
        verify_cells(config, cells[:1])
    assert "train_losses" in capsys.readouterr().out
    assert differences(folder, folder) == []


def start_driver(folder, jobs):
    command = [sys.executable, study_worker.__file__, "drive", str(folder), str(jobs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def kill(driver):
    driver.kill()
    driver.wait()
    driver.stderr.close()


def test_killed_study_goes_on_where_it_was(tmp_path):
    config, cells = study_worker.make_study(tmp_path, jobs=2)
    driver = start_driver(tmp_path, 2)
    wait_until(lambda: starts(tmp_path).total() >= 3)
    time.sleep(random.uniform(0, study_worker.SECONDS))
    kill(driver)
    # its processes live on, so the next study waits for them and takes what they leave
    run_cells(config, cells)
    check_complete(tmp_path, cells)
    assert set(starts(tmp_path).values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_study_survives_kills_of_everything_at_any_time(tmp_path, seed):
    draw = random.Random(seed)
    config, cells = study_worker.make_study(tmp_path, jobs=2)
    known, lost = {}, Counter()
    for _ in range(4):
        driver, before = start_driver(tmp_path, 2), starts(tmp_path).total()
        wait_until(lambda driver=driver, before=before: starts(tmp_path).total() > before or driver.poll() is not None)
        time.sleep(draw.uniform(0, 3 * study_worker.SECONDS))
        kill(driver)
        if draw.random() < 0.5:  # as if the machine had gone down
            for pid in filter(is_alive, pids(tmp_path)):
                os.kill(pid, signal.SIGKILL)
            lost.update(folder.name for folder in (tmp_path / "running").glob("*"))
        there = {file: file.stat().st_ino for file in (tmp_path / "cells").rglob("cell.json")}
        assert known.items() <= there.items()
        known = there
    run_cells(config, cells)
    check_complete(tmp_path, cells)
    assert all(file.stat().st_ino == inode for file, inode in known.items())
    assert all(count <= 1 + lost[name] for name, count in starts(tmp_path).items())


def test_sigterm_ends_the_processes_and_says_how_to_go_on(tmp_path):
    config, cells = study_worker.make_study(tmp_path, jobs=2)

    def terminate():
        wait_until(lambda: starts(tmp_path).total() >= 3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread, handler = threading.Thread(target=terminate), signal.getsignal(signal.SIGTERM)
    thread.start()
    with pytest.raises(TrainingError, match=r"interrupted; [0-9] of 8 cells are finished, the same command runs"):
        run_cells(config, cells)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not any(is_alive(pid) for pid in pids(tmp_path))
    run_cells(config, cells)
    check_complete(tmp_path, cells)


@pytest.mark.slow
def test_ctrl_c_is_no_traceback_of_several_errors(tmp_path):
    driver = start_driver(tmp_path, 2)
    wait_until(lambda: starts(tmp_path).total() >= 3)
    driver.send_signal(signal.SIGINT)
    said = driver.communicate(timeout=30)[1].decode()
    assert "the same command runs the others" in said.splitlines()[-1]
    assert "During handling" not in said
    assert not any(is_alive(pid) for pid in pids(tmp_path))
