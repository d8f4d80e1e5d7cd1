"""`report` on cells that real (tiny) runs have made."""

import csv
import json
import shutil

import pytest

from lma_hf.cli.__main__ import main
from lma_hf.compare.cells import CELL

pytestmark = pytest.mark.slow
FLAGS = ["--num_layers", "2", "--max_steps", "6", "--logging_steps", "2", "--calibration_batches", "2"]
FLAGS += ["--per_device_train_batch_size", "16", "--learning_rate", "2e-3", "--allow_weak_teacher", "true"]


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory, data_flags, teacher_dir):
    """Two seeds with GELU and with LMA, and the record that makes each run a cell."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    for activation in ("gelu", "lma"):
        for seed in (1, 2):
            cell = folder / "cells" / "reviews" / "2layers" / activation / f"seed-{seed}"
            flags = [*data_flags, *FLAGS, "--teacher", str(teacher_dir), "--output_dir", str(cell)]
            assert main(["distill", *flags, "--activation", activation, "--seed", str(seed)]) == 0
            identity = {"task": "reviews", "student": "2layers", "activation": activation, "seed": seed, "axes": []}
            record = {**identity, "options": {}, "wall_seconds": 1.0, "weights_sha256": None}
            (cell / CELL).write_text(json.dumps(record), encoding="utf-8")
    return folder


def report(folder):
    assert main(["report", "--study_dir", str(folder)]) == 0
    with open(folder / "report" / "summary.csv", encoding="utf-8", newline="") as file:
        rows = {row["activation"]: row for row in csv.DictReader(file) if row["task"] == "reviews"}
    return rows, (folder / "report" / "report.md").read_text(encoding="utf-8")


def test_report_says_what_the_runs_recorded(study_dir):
    rows, text = report(study_dir)
    for activation, row in rows.items():
        folders = [study_dir / "cells" / "reviews" / "2layers" / activation / f"seed-{seed}" for seed in (1, 2)]
        results = [json.loads((folder / "results.json").read_text()) for folder in folders]
        scores = [100 * each["metrics"]["validation"]["accuracy"] for each in results]
        teacher = 100 * results[0]["teacher"]["metrics"]["validation"]["accuracy"]
        assert float(row["mean"]) == pytest.approx(sum(scores) / 2)
        assert float(row["share_of_teacher_percent"]) == pytest.approx(sum(scores) / 2 / teacher * 100)
        assert int(row["num_parameters"]) == results[0]["num_parameters"]
        assert f"{sum(scores) / 2:.2f} ± " in text
        assert f"loss {float(row['train_distill_loss']):.4f}" in text
    assert "reviews, seed 1. The density is that of validation tokens" in text
    images = {path.stem for path in (study_dir / "report" / "images").iterdir()}
    assert {"activations-2", "movement", "learning-1", "seeds-1", "cost"} <= images


def test_without_data_or_weights_the_report_says_or_shows_less(study_dir, data_dir, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(study_dir, copy)
    for file in copy.rglob("run_config.yaml"):
        file.write_text(file.read_text().replace(str(data_dir), str(tmp_path / "gone")))
    assert "The data is not at hand, so the density is the normal one" in report(copy)[1]
    for file in copy.rglob("model.safetensors"):
        file.unlink()
    assert "Learned activations" not in report(copy)[1]
    assert not {"activations-2", "movement"} & {path.stem for path in (copy / "report" / "images").iterdir()}
