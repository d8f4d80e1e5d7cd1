"""`teach` and `distill` on all nine GLUE tasks, on a tiny model and a few rows of the local copy."""

import json

import pytest

from lma_hf.cli.__main__ import main
from lma_hf.data.glue import GLUE_TASKS


@pytest.mark.parametrize("task_name", GLUE_TASKS)
def test_task(tmp_path, glue_dir, pretrained_dir, task_name):
    data = ["--task_name", task_name, "--dataset", str(glue_dir), "--max_length", "48", "--max_steps", "2"]
    data += ["--max_train_samples", "48", "--max_eval_samples", "40", "--per_device_train_batch_size", "16"]
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    assert main(["teach", *data, "--model_name_or_path", str(pretrained_dir), "--output_dir", teacher]) == 0
    flags = ["--teacher", teacher, "--output_dir", student, "--num_layers", "2", "--calibration_batches", "2"]
    assert main(["distill", *data, *flags, "--allow_weak_teacher", "true"]) == 0

    task = GLUE_TASKS[task_name]
    results = json.loads((tmp_path / "student" / "results.json").read_text())
    assert set(results["metrics"][task.validation_splits[0]]) == set(task.metrics)
    assert results["best_metric"] == task.best_metric
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    if task.is_regression:
        assert config["problem_type"] == "regression"
    else:
        assert tuple(config["id2label"].values()) == task.label_names
