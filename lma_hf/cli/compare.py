"""`lma-hf compare`: many `distill` runs, described in one YAML, and what they say together."""

import logging
from dataclasses import replace
from pathlib import Path

from lma_hf.cli.distill import activation_settings
from lma_hf.cli.parser import from_mapping, to_yaml
from lma_hf.compare.cells import read_results
from lma_hf.compare.report.write import write_report
from lma_hf.compare.same_options import check_same_options
from lma_hf.compare.study import check_different, expand, select
from lma_hf.compare.study_latency import measure_students
from lma_hf.compare.study_plan import STUDY
from lma_hf.compare.study_run import run_cells
from lma_hf.compare.verify import verify_cells
from lma_hf.data.glue import resolve_task
from lma_hf.errors import OutputDirError, TrainingError
from lma_hf.training.checkpoint import write_whole
from lma_hf.training.config import DistillConfig

logger = logging.getLogger(__name__)


def compare(config):
    """Run the cells of a study that are not finished yet, and write its report; or check finished ones.

    Args: config: a `CompareConfig`.
    Raises: ConfigError for a study that cannot be run, or whose finished cells had other options, before anything is
        written. TrainingError if a cell failed, after the report of the others.
    """
    cells = study_cells(config)
    if config.verify:
        verify_cells(config, cells)
        return
    study_dir = Path(config.output_dir).expanduser()
    check_same_options(study_dir, cells)
    try:
        study_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirError(f"output_dir {study_dir} cannot be used: {error}; choose another folder") from error
    plan, command = study_dir / STUDY, f"lma-hf compare {study_dir / STUDY}"
    write_whole(plan, lambda temporary: to_yaml(replace(config, cells=None), temporary, command))
    failures = run_cells(config, cells)
    _describe(config, study_dir)
    if failures:
        raise TrainingError(failures)


def _describe(config, study_dir):
    """Latencies and report, if there is a finished cell."""
    if not read_results(study_dir):
        return
    if config.latency:
        measure_students(study_dir, config.threads_per_job)
    logger.info("report: %s", write_report(study_dir))


def study_cells(config):
    """The cells of a study, or those that its `cells` names, with their options as `DistillConfig` takes them.

    Raises: ConfigError or DataError if an option of any cell is not allowed, before a single one is run.
    """
    cells = [resolve_options(cell) for cell in expand(config)]
    check_different(cells)
    return cells if config.cells is None else select(cells, config.cells, "cells")


def resolve_options(cell):
    """The cell with its options checked and of their proper types. Raises: as of `study_cells`."""
    settings = from_mapping(DistillConfig, {**cell.options, "seed": cell.seed, "output_dir": "-"}, cell.name)
    resolve_task(settings)
    activation_settings(settings)
    return replace(cell, options={key: getattr(settings, key) for key in cell.options})
