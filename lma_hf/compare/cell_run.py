"""One cell, run as a `distill` process of its own: its folder appears whole or not at all, and only once.

A lock that the process inherits says that the cell is being run, also where whoever started it has been killed; the
next one waits for the process and takes what it left. A run that was ended from outside goes on from its checkpoint.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from lma_hf.compare.cells import CELL, CELLS, Cell
from lma_hf.compare.profiling import weights_sha256
from lma_hf.training.checkpoint import METRICS, RESULTS, RUN_CONFIG, write_json
from lma_hf.training.run_checkpoints import FOLDER as CHECKPOINTS

RUNNING, FAILED, LOG = "running", "failed", "log.txt"
# what stays of a cell whose model is discarded
RECORDS = (CELL, RESULTS, RUN_CONFIG, "environment.json", METRICS, "config.json", LOG)
DISTILL = [sys.executable, "-m", "lma_hf.cli", "distill"]
POLL_SECONDS = 0.1
# a run looks for SIGTERM after each step only, so an evaluation comes to its end first
PATIENCE_SECONDS = 600
BUSY = "is being run elsewhere"


@dataclass(frozen=True)
class CellJob:
    """A cell to run, on any machine that sees the same files.

    Attributes:
        study_dir: as the user wrote it, so that records have no absolute paths; relative to cwd.
        threads: CPU threads of the run. keep_model: whether the finished cell has its weights.
        wait: whether to wait for somebody else who runs the cell; else it is left to them.
    """

    cell: Cell
    study_dir: str
    cwd: str
    threads: int
    keep_model: bool = True
    wait: bool = True

    @property
    def study(self):
        """Absolute path of the study."""
        return Path(self.cwd, self.study_dir)

    @property
    def final(self):
        """Where the finished cell will be."""
        return self.study / CELLS / self.cell.name

    @property
    def running(self):
        """Where it is until then."""
        return self.study / RUNNING / _flat(self.cell)

    @property
    def failure_log(self):
        """Where the log of a failed run is."""
        return self.study / FAILED / f"{_flat(self.cell)}.log"


def run_cell(job, stop=None):
    """Run a cell unless it is finished, or somebody else finishes it meanwhile.

    Args: job: a `CellJob`. stop: a threading.Event that ends the wait or the run.
    Returns: None, or one line that says why the cell is not finished; `BUSY` if somebody else runs it.
    """
    stop = stop or threading.Event()
    with _lock(job, stop) as lock:
        if lock is None:
            return "stopped" if stop.is_set() else BUSY
        if not job.final.is_dir():
            if not _is_complete(job) and (reason := _distill(job, lock, stop)):
                return reason
            _finish(job)
        # somebody who waits for the lock may make a new one meanwhile, and then removes the folder in turn
        shutil.rmtree(job.running, ignore_errors=True)
    return None


def _settings(job):
    return yaml.safe_dump({**job.cell.options, "seed": job.cell.seed})


def _is_complete(job):
    """Whether a run with these settings has ended, and whoever started it was killed before it took note."""
    return _has_begun(job) and (job.running / "run" / RESULTS).is_file()


def _has_begun(job):
    """Whether there is a run with these settings."""
    settings = job.running / "settings.yaml"
    if not (job.running / "run" / RUN_CONFIG).is_file() or not settings.is_file():
        return False
    return settings.read_text(encoding="utf-8") == _settings(job)


def _distill(job, lock, stop):
    """Run the process. Returns: None, or the last line of its log."""
    settings = job.running / "settings.yaml"
    output_dir = Path(job.study_dir, RUNNING, job.running.name, "run")
    command = [*DISTILL, str(settings), "--output_dir", str(output_dir)]
    if _has_begun(job):
        command += ["--resume", "true"]
        _leave_out_pause(job)
    else:
        _clear(job.running)
        settings.write_text(_settings(job), encoding="utf-8")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(job.threads))
    environment = {**os.environ, **threads, "TQDM_MININTERVAL": "60", "PYTHONUNBUFFERED": "1"}
    with open(job.running / LOG, "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=job.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        )
        try:
            while process.poll() is None and not stop.wait(POLL_SECONDS):
                pass
        finally:
            stopped = _terminate(process)
    if stopped:
        return "stopped"
    return _reason(job, process.returncode) if process.returncode else None


def _leave_out_pause(job):
    """Move the start of a run that goes on, so that the time since it was stopped does not count as its own."""
    settings, last = job.running / "settings.yaml", job.running / "run" / METRICS
    if last.is_file():
        start = settings.stat().st_mtime + time.time() - last.stat().st_mtime
        os.utime(settings, (start, start))


def _terminate(process):
    """End a process with its children, if it still runs. Returns: whether it did."""
    if process.poll() is not None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
            break
    return True


def _reason(job, returncode):
    """Keep the log of a run that has failed, and nothing else, unless it can go on: not after misuse (2).

    Returns: the log's last line.
    """
    job.failure_log.parent.mkdir(exist_ok=True)
    _move_log(job, job.failure_log)
    lines = [line.strip() for line in job.failure_log.read_text(encoding="utf-8").splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    if returncode == 2 or (returncode == 1 and not _has_checkpoint(job)):
        shutil.rmtree(job.running, ignore_errors=True)
    return said if returncode > 0 else f"ended by signal {-returncode}; its last line: {said}"


def _has_checkpoint(job):
    return any((job.running / "run" / CHECKPOINTS).glob("step-*"))


def _move_log(job, path):
    """Move the log, with of each line what a terminal shows in the end: progress bars overwrite theirs."""
    text = (job.running / LOG).read_bytes().decode("utf-8", errors="replace")
    path.write_text("\n".join(line.rpartition("\r")[2] for line in text.split("\n")), encoding="utf-8")
    (job.running / LOG).unlink()


def _finish(job):
    """Complete the records, and put the folder in its place; may be interrupted and repeated anywhere."""
    run = job.running / "run"
    if not (run / CELL).is_file():
        started, ended = (file.stat().st_mtime for file in (job.running / "settings.yaml", run / RESULTS))
        measured = {"wall_seconds": ended - started, "weights_sha256": weights_sha256(run)}
        identity = {key: getattr(job.cell, key) for key in ("task", "student", "activation", "axes", "seed")}
        write_json({**identity, "options": job.cell.options, **measured}, run / CELL)
    if (job.running / LOG).is_file():
        _move_log(job, run / LOG)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    if not job.keep_model:
        for file in run.iterdir():
            if file.name not in RECORDS:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
    _name_final_folder(job, run / RUN_CONFIG)
    job.final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(run, job.final)
    job.failure_log.unlink(missing_ok=True)


def _name_final_folder(job, path):
    """Let the run's configuration name the folder in which it ends up."""
    temporary, final = Path(job.study_dir, RUNNING, job.running.name, "run"), Path(job.study_dir, CELLS, job.cell.name)
    text = path.read_text(encoding="utf-8").replace(str(temporary), str(final))
    path.with_suffix(".saving").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".saving"), path)


def _clear(folder):
    """Remove what a killed run has left beside the lock."""
    for file in folder.iterdir():
        if file.name != "lock":
            shutil.rmtree(file) if file.is_dir() else file.unlink()


@contextlib.contextmanager
def _lock(job, stop):
    """Hold a cell's lock file; yields its descriptor, or None if `stop` was set or the job is not to wait."""
    path = job.running / "lock"
    descriptor = None if stop.is_set() else _try_lock(path)
    while job.wait and descriptor is None and not stop.wait(POLL_SECONDS):
        descriptor = _try_lock(path)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(path):
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # whoever had it before us may have removed the file
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError, FileExistsError):
        pass  # the last: mkdir, if the folder goes while it looks
    if descriptor is not None:
        os.close(descriptor)
    return None


def _flat(cell):
    # names have no comma
    return cell.name.replace("/", ",")
