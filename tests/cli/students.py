"""Students for tests of `distill --quantize` and `compress`."""

import json

from transformers import AutoModelForSequenceClassification

from lma_hf.cli.evaluate import evaluate
from lma_hf.training.config import EvaluateConfig

DISTILL = ["--num_layers", "2", "--num_train_epochs", "2", "--learning_rate", "2e-3", "--calibration_batches", "2"]
DISTILL += ["--per_device_train_batch_size", "16", "--eval_steps", "1000", "--logging_steps", "5"]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["distill_loss"]) for line in lines if "loss" in line]


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def scores(folder, data_flags):
    dataset = data_flags[data_flags.index("--dataset") + 1]
    return evaluate(EvaluateConfig(model_dir=str(folder), dataset=dataset, text_columns=["text"], max_length=32))
