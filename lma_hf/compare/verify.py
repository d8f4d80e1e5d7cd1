"""Running finished cells of a study again, and comparing what comes out bit by bit."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from lma_hf.compare.cells import CELLS, read_result
from lma_hf.compare.same_options import check_same_options
from lma_hf.compare.study_run import run_cells
from lma_hf.errors import ConfigError, TrainingError

COMPARED = ("score", "scores", "train_losses", "num_parameters", "size_mb", "weights_sha256")


def verify_cells(config, cells):
    """Run the cells in a temporary folder, and say of each whether it gives the numbers and weights of the study.

    Args: config: a `CompareConfig`. cells: list of `Cell`, each finished.
    Raises: ConfigError if a cell is not finished or had other options. TrainingError if a cell fails or differs.
    """
    study_dir = Path(config.output_dir).expanduser()
    for cell in cells:
        if not (study_dir / CELLS / cell.name).is_dir():
            raise ConfigError(
                f"verify: {cell.name} is not finished in {study_dir}; run it first, or name other --cells"
            )
    check_same_options(study_dir, cells, moved=True)
    with tempfile.TemporaryDirectory(prefix="lma-hf-verify-") as folder:
        # the folder is this machine's
        if failures := run_cells(replace(config, output_dir=folder, executor="local"), cells):
            raise TrainingError(failures)
        found = [differences(*(root / CELLS / cell.name for root in (study_dir, Path(folder)))) for cell in cells]
    for cell, lines in zip(cells, found, strict=True):
        print(f"{cell.name}: " + ("; ".join(lines) if lines else "equal, bit by bit"))
    if any(found):
        raise TrainingError(f"{sum(map(bool, found))} of {len(cells)} cells differ from those in {study_dir}")


def differences(then, now):
    """What differs between two runs of a cell, and, if anything does, what differs between their machines.

    Args: then, now: folders of the finished cell.
    Returns: list of text.
    """
    first, second = read_result(then), read_result(now)
    lines = [
        f"{key} {getattr(second, key)}, was {getattr(first, key)}"
        for key in COMPARED
        if getattr(first, key) != getattr(second, key)
    ]
    return lines and lines + _other_environment(then, now)


def _other_environment(then, now):
    environments = (json.loads((folder / "environment.json").read_text(encoding="utf-8")) for folder in (then, now))
    first, second = ({**found, **found.pop("versions")} for found in environments)
    return [
        f"{key} {second.get(key)}, was {first.get(key, 'not recorded')}"
        for key in sorted({*first, *second})
        if key != "date" and first.get(key) != second.get(key)
    ]
