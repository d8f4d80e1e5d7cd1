"""The cells of a study: what identifies one, and what a finished one says."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from lma_hf.errors import DataError
from lma_hf.training.checkpoint import RESULTS, write_whole

CELLS, CELL, TABLE, LATENCIES = "cells", "cell.json", "cells.csv", "latency.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One `distill` run of a study.

    Attributes:
        task, student, activation, seed: the study's names for what the cell is made of.
        axes: (name, value) of every further axis, in the study's order.
        options: what `DistillConfig` is told, without seed and output_dir.
    """

    task: str
    student: str
    activation: str
    seed: int
    axes: tuple[tuple[str, str], ...] = ()
    options: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Where the cell lies under `cells/`, such as rte/3layers/lma8/seed-1."""
        return f"{self.task}/{self.model_name}/seed-{self.seed}"

    @property
    def model_name(self) -> str:
        """The name without task and seed: cells that share it have models of one size and speed."""
        return "/".join([self.student, self.activation, *(f"{axis}-{value}" for axis, value in self.axes)])


@dataclass(frozen=True, kw_only=True)
class CellResult(Cell):
    """A finished cell.

    Attributes:
        metric, score: the task's primary metric, and its value on the (first) validation split.
        scores: every metric; those of further validation splits are called "<split>/<metric>".
        train_losses: means over the last epoch: loss, task_loss, distill_loss and whatever else was weighted.
        train_seconds: of the training loop; wall_seconds: of the whole run, loading and evaluation included.
        num_parameters, size_mb: of the student. latency_ms: of one text on this machine's CPU, where measured.
        weights_sha256: of the student's weights, which may have been discarded since.
        folder: the run's folder.
    """

    metric: str
    score: float
    scores: dict[str, float]
    train_losses: dict[str, float]
    train_seconds: float
    num_parameters: int
    size_mb: float
    folder: Path
    wall_seconds: float | None = None
    weights_sha256: str | None = None
    latency_ms: float | None = None


def read_results(study_dir) -> list[CellResult]:
    """The finished cells of a study, by name, seeds in numerical order.

    Raises: DataError if a cell's records cannot be read.
    """
    study_dir = Path(study_dir)
    latencies = _read_json(study_dir / LATENCIES)["latency_ms"] if (study_dir / LATENCIES).is_file() else {}
    results = [read_result(file.parent, latencies) for file in (study_dir / CELLS).rglob(CELL)]
    return sorted(results, key=lambda result: (result.task, result.model_name, result.seed))


def read_result(folder, latencies=None) -> CellResult:
    """The finished cell in a folder. Args: latencies: model_name -> ms. Raises: DataError if it cannot be read."""
    folder = Path(folder)
    cell, results = _read_json(folder / CELL), _read_json(folder / RESULTS)
    try:
        axes = tuple((axis, value) for axis, value in cell["axes"])
        identity = Cell(**{key: cell[key] for key in ("task", "student", "activation", "seed", "options")}, axes=axes)
        return CellResult(
            **vars(identity),
            metric=results["best_metric"],
            score=results["training"]["best_score"],
            scores=_flat_scores(results["metrics"]),
            train_losses=last_epoch_losses(folder / "metrics.jsonl"),
            train_seconds=results["training"]["train_seconds"],
            num_parameters=results["num_parameters"],
            size_mb=results["size_mb"],
            folder=folder,
            wall_seconds=cell["wall_seconds"],
            weights_sha256=cell["weights_sha256"],
            latency_ms=(latencies or {}).get(identity.model_name),
        )
    except (KeyError, TypeError, OSError, ValueError) as error:
        raise DataError(f"{folder} has incomplete records ({error!r}); delete it to run the cell again") from error


def last_epoch_losses(path) -> dict[str, float]:
    """Mean training losses over the last epoch of a metrics.jsonl; none if none was finite.

    Each line holds means since the line before it, so they are weighted by steps; one that straddles the epoch's
    start counts whole.
    """
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    steps = [line["step"] for line in lines]
    windows = [(end - start, line) for start, end, line in zip([0, *steps], steps, lines, strict=False)]
    last = [(weight, line) for weight, line in windows if line["epoch"] > lines[-1]["epoch"] - 1]
    # null: no step of the window had a finite loss, and --on_nan skip left them out
    last = [(weight, line) for weight, line in last if line["loss"] is not None]
    names = [name for name in lines[-1] if name == "loss" or name.endswith("_loss")]
    total = sum(weight for weight, _ in last)
    # a loss that began during the epoch has no earlier lines
    return {name: sum(weight * line.get(name, 0.0) for weight, line in last) / total for name in names if total}


def write_table(study_dir):
    """Write the finished cells as cells.csv, a row a cell, atomically. Returns: the cells."""
    results = read_results(study_dir)
    rows = [_row(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(Path(study_dir) / TABLE, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    return results


def _row(result):
    row = {key: getattr(result, key) for key in ("task", "student", "activation")}
    row |= dict(result.axes) | {"seed": result.seed, "metric": result.metric, "score": result.score}
    row |= {f"train_{name}": value for name, value in result.train_losses.items()}
    keys = ("train_seconds", "wall_seconds", "num_parameters", "size_mb", "latency_ms", "weights_sha256")
    return row | {key: getattr(result, key) for key in keys} | result.scores


def _flat_scores(metrics):
    first, *others = metrics
    further = {f"{split}/{name}": value for split in others for name, value in metrics[split].items()}
    return {**metrics[first], **further}


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete its folder to run the cell again") from error
