"""Running the cells of a study: what is left, several at a time, with the time that it will take."""

import contextlib
import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from lma_hf.compare.cell_run import BUSY, FAILED, RUNNING, CellJob
from lma_hf.compare.cells import CELLS, read_result, write_table
from lma_hf.compare.executors import open_executor
from lma_hf.errors import TrainingError

logger = logging.getLogger(__name__)
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"


def run_cells(config, cells):
    """Run those of the cells that are not finished; cells.csv is up to date after each.

    Args: config: a `CompareConfig`. cells: list of `Cell`.
    Returns: one line about the cells that failed, all others having ended; None if none did.
    Raises: TrainingError if the study was interrupted.
    """
    study_dir = Path(config.output_dir).expanduser()
    left = [cell for cell in cells if not (study_dir / CELLS / cell.name).is_dir()]
    logger.info("%d cells, %d of them finished", len(cells), len(cells) - len(left))
    study_dir.mkdir(parents=True, exist_ok=True)
    failures = _run(config, study_dir, cells, left) if left else {}
    write_table(study_dir)
    with contextlib.suppress(OSError):  # another process may run cells of this study
        (study_dir / RUNNING).rmdir()
    if failures:
        name, reason = next(iter(failures.items()))
        return (
            f"{len(failures)} of {len(cells)} cells failed, the first is {name} ({reason}); the logs are in "
            f"{study_dir / FAILED}, and the same command runs these cells again"
        )
    return None


def _run(config, study_dir, cells, left):
    """Run the cells that are left. Returns: name of each failed cell -> reason."""
    failures, stop, waiting = {}, threading.Event(), {cell.name: cell for cell in left}
    with (
        open_executor(config) as execute,
        tqdm(total=len(cells), initial=len(cells) - len(left), bar_format=BAR_FORMAT) as bar,
        _sigterm_interrupts(),
        ThreadPoolExecutor(config.jobs) as pool,
    ):
        try:
            _show_time_left(bar, config, write_table(study_dir), left)
            for name, reason in _outcomes(pool, execute, [job_of(config, cell) for cell in left], stop):
                del waiting[name]
                if reason:
                    failures[name] = reason = f"failed: {reason}"
                tqdm.write(f"{name}: {reason or _score(study_dir / CELLS / name)}")
                bar.update(1)
                _show_time_left(bar, config, write_table(study_dir), waiting.values())
        except KeyboardInterrupt:
            logger.info("the running cells finish their step, or evaluation, and write a checkpoint")
            done = len(cells) - len(waiting) - len(failures)
            raise TrainingError(
                f"interrupted; {done} of {len(cells)} cells are finished, the same command runs the others"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return failures


def _outcomes(pool, execute, jobs, stop):
    """(name of a cell, why it is not finished or None), as they end.

    What somebody else runs is left to them at first, so that several who run one study share its cells, and waited
    for at the end, since they may be killed.
    """
    busy = []
    for job, reason in _as_completed(pool, execute, [replace(job, wait=False) for job in jobs], stop):
        if reason == BUSY:
            busy.append(replace(job, wait=True))
        else:
            yield job.cell.name, reason
    for job, reason in _as_completed(pool, execute, busy, stop):
        yield job.cell.name, reason


def _as_completed(pool, execute, jobs, stop):
    futures = {pool.submit(execute, job, stop): job for job in jobs}
    return ((futures[future], _reason(future)) for future in as_completed(futures))


def job_of(config, cell):
    """The `CellJob` of a cell."""
    keep_model = config.keep_models == "all" or (config.keep_models == "first_seed" and cell.seed == config.seeds[0])
    study_dir = str(Path(config.output_dir).expanduser())
    return CellJob(cell, study_dir, str(Path.cwd()), config.threads_per_job, keep_model)


def _reason(future):
    """Why a cell is not finished, or None; what an executor raises is a reason, too."""
    try:
        return future.result()
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def _score(folder):
    result = read_result(folder)
    return f"{result.metric} {result.score:.4f} in {result.wall_seconds:.0f} s"


def _show_time_left(bar, config, results, unfinished):
    seconds = seconds_left(unfinished, results, config.jobs)
    # without a finished cell nobody knows
    bar.set_postfix_str("time left unknown" if seconds is None else f"time left {timedelta(seconds=round(seconds))}")


def seconds_left(unfinished, results, jobs):
    """How long the unfinished cells will take, from the finished ones most like them; None where there are none."""
    if not results:
        return None
    return sum(_expected_seconds(cell, results) for cell in unfinished) / max(1, min(jobs, len(unfinished)))


def _expected_seconds(cell, results):
    keys = (("task", "student", "activation"), ("task", "student"), ("task",), ())
    for key in keys:
        alike = [result.wall_seconds for result in results if all(getattr(result, k) == getattr(cell, k) for k in key)]
        if alike:
            return fmean(alike)
    return 0.0


@contextlib.contextmanager
def _sigterm_interrupts():
    """Let SIGTERM do what Ctrl-C does, inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
