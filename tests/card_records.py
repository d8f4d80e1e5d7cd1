"""Records of a finished run, as a model card is written from them."""

import json

import yaml

from lma_hf.hub.comparison import ComparedModel, Comparison
from lma_hf.hub.provenance import Provenance

SCORES = {"validation": {"accuracy": 0.8337155963302753, "f1": 0.7912345}}
CONFIG = {
    "task_name": "mrpc",
    "dataset": "/home/someone/data/glue",
    "max_length": 64,
    "max_train_samples": 600,
    "max_eval_samples": None,
    "seed": 42,
    "output_dir": "/home/someone/runs/student",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "activation_learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "linear",
    "mixed_precision": "bf16",
    "freeze_embeddings": True,
    "eval_steps": None,
    "teacher": "/home/someone/runs/the-teacher",
    "temperature": 2.0,
    "task_loss_weight": 0.3,
    "distill_loss_weight": 0.7,
    "hidden_loss_weight": 0.0,
}
RESULTS = {
    "task": "mrpc",
    "metrics": SCORES,
    "training": {"num_steps": 75, "train_seconds": 12.5},
    "num_processes": 1,
    "layer_map": [0, 2],
    "teacher": {"name": "/home/someone/runs/the-teacher", "metrics": SCORES},
}
ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "python": "3.12.1",
    "processor": "Some CPU",
    "cpu_count": 4,
    "torch_threads": 2,
    "cuda_device": None,
    "versions": {"lma_hf": "9.8.7", "torch": "2.9.0"},
}
KNOWN = Provenance(license="apache-2.0", base_model="owner/base", language="en", source="the teacher")


def write_records(folder, config=CONFIG, results=RESULTS, environment=ENVIRONMENT):
    (folder / "run_config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "environment.json").write_text(json.dumps(environment))


def compared(scores=SCORES, student=None, **changes):
    student = student or ComparedModel(
        "student with LMA", "lma", {42: scores}, 2, 1_234_567, 4.938, {1: 1.5, 32: 20.25}
    )
    values = {"is_pair": True, "num_examples": dict.fromkeys(scores, 408), "environment": ENVIRONMENT}
    return Comparison(student, "accuracy", **values | changes)
