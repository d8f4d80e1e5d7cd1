"""What runs the cells of a study: processes of this machine, a Ray cluster, or Slurm through submitit."""

import contextlib
import functools
import threading
from pathlib import Path

from lma_hf.compare.cell_run import PATIENCE_SECONDS, run_cell
from lma_hf.errors import ConfigError, MissingDependencyError

POLL_SECONDS = 0.5


def open_executor(config):
    """Context manager that yields a function (CellJob, stop) -> None or the reason why it is not finished.

    The function blocks until then, on any number of threads at the same time.

    Args: config: a `CompareConfig`.
    Raises: MissingDependencyError or ConfigError if the executor cannot be had.
    """
    return {"local": _local, "ray": _ray, "slurm": _slurm}[config.executor](config)


@contextlib.contextmanager
def _local(config):
    yield run_cell


@contextlib.contextmanager
def _ray(config):
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("executor ray needs Ray; run pip install 'lma_hf[ray]'") from error
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError as error:
            raise ConfigError(
                "executor ray found no cluster; run `ray start --head` on one machine, `ray start --address ...` on "
                "the others, or set RAY_ADDRESS"
            ) from error
    remote = ray.remote(num_cpus=config.threads_per_job, num_gpus=config.gpus_per_job)(run_cell)
    try:
        yield functools.partial(_run_on_ray, ray, remote)
    finally:
        if started_here:
            ray.shutdown()


def _run_on_ray(ray, remote, job, stop):
    reference = remote.remote(job)
    while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
        if stop.is_set():
            # raises KeyboardInterrupt in the task, which ends its process
            ray.cancel(reference)
            ray.wait([reference], timeout=PATIENCE_SECONDS)
            return "stopped"
    return ray.get(reference)


@contextlib.contextmanager
def _slurm(config):
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError("executor slurm needs submitit; run pip install 'lma_hf[slurm]'") from error
    parameters = dict(config.slurm)
    cluster = parameters.pop("cluster", "slurm")
    folder = Path(config.output_dir).expanduser().absolute() / "submitit"
    resources = {"cpus_per_task": config.threads_per_job, "gpus_per_node": config.gpus_per_job, "name": "lma-hf"}
    # submitit's own default is five minutes
    resources["timeout_min"] = 24 * 60
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{**resources, **parameters})
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise ConfigError(f"executor slurm: {' '.join(str(error).split())}; correct slurm in the YAML") from error
    yield functools.partial(_run_on_slurm, executor, threading.Lock())


def _run_on_slurm(executor, lock, job, stop):
    # submitit keeps what it knows about all jobs in one place, without locks
    with lock:
        submitted = executor.submit(run_cell, job)
    while True:
        with lock:
            if submitted.done():
                return submitted.result()
        if stop.wait(POLL_SECONDS):
            with lock:
                submitted.cancel()
            return "stopped"
