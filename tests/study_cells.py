"""Made-up cells of a study, with the records that a report reads; no number here was measured."""

import json

import numpy as np

from lma_hf.compare.cells import CELL, CellResult

METRICS = {"cola": "matthews_correlation", "stsb": "pearson", "mrpc": "f1"}


def made_up_cell(task="rte", student="3layers", activation="gelu", seed=1, score=0.5, folder=None, **values):
    """A `CellResult` that no run has made."""
    defaults = {
        "metric": METRICS.get(task, "accuracy"),
        "scores": {METRICS.get(task, "accuracy"): score},
        "train_losses": {"loss": 0.5, "task_loss": 0.7, "distill_loss": 0.4},
        "train_seconds": 1.0,
        "num_parameters": 1000,
        "size_mb": 4.0,
        "folder": folder,
    }
    identity = {"task": task, "student": student, "activation": activation, "seed": seed, "score": score}
    return CellResult(**identity | defaults | values)


def made_up_study(study_dir, tasks, students, activations, seeds, *, teacher=0.9, missing=(), draw_seed=0):
    """Write the records of a grid of cells whose scores are drawn: a common part a seed, then noise.

    Args: activations: name -> what it adds to the score. missing: (task, student, activation, seed) to leave out.
    """
    draw = np.random.default_rng(draw_seed)
    for task in tasks:
        for student in students:
            for seed in seeds:
                common = draw.normal(0.7, 0.02)
                for activation, gain in activations.items():
                    score = common + gain + draw.normal(0, 0.005)
                    if (task, student, activation, seed) not in missing:
                        _write_records(study_dir, task, student, activation, seed, score, teacher, draw)


def _write_records(study_dir, task, student, activation, seed, score, teacher, draw):
    folder = study_dir / "cells" / task / student / activation / f"seed-{seed}"
    folder.mkdir(parents=True)
    metric = METRICS.get(task, "accuracy")
    identity = {"task": task, "student": student, "activation": activation, "seed": seed, "axes": [], "options": {}}
    records = {CELL: identity | {"wall_seconds": 2.0, "weights_sha256": None}}
    records["results.json"] = {
        "task": task,
        "best_metric": metric,
        "metrics": {"validation": {metric: score}},
        "num_parameters": 1000 + 10 * len(activation),
        "size_mb": 4.0 + len(activation) / 10,
        "training": {"best_score": score, "train_seconds": 1.0},
        "teacher": {"name": "teacher", "metrics": {"validation": {metric: teacher}}},
    }
    for name, values in records.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    lines = []
    for step in range(10, 110, 10):
        loss = 1 / step**0.5 + draw.normal(0, 0.01)
        lines.append({"step": step, "epoch": step / 50, "loss": loss, "task_loss": loss, "distill_loss": loss})
        if step in (50, 100):
            metrics = {"validation": {metric: score - (100 - step) / 1000}}
            lines.append({"step": step, "evaluation": metrics})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
