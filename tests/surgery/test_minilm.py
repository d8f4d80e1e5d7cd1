"""The swap without training on a real BERT: MiniLM-L6, fine-tuned on SST-2."""

import copy

import pytest
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lma_hf
from lma_hf.cli.__main__ import main
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.glue import get_task
from lma_hf.data.quickstart import fetch_pretrained
from lma_hf.data.sources import load_splits
from lma_hf.training.prediction import predict

pytestmark = pytest.mark.slow
CALIBRATION_BATCHES = 8


@pytest.fixture(scope="module")
def original(tmp_path_factory, glue_dir):
    """(model, calibration batches, development loader, accelerator)."""
    pretrained = fetch_pretrained(tmp_path_factory.mktemp("cache"))
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--task_name", "sst2", "--dataset", str(glue_dir), "--max_train_samples", "8000", "--max_length", "64"]
    flags += ["--model_name_or_path", str(pretrained), "--output_dir", str(folder), "--num_train_epochs", "1"]
    assert main(["teach", *flags, "--freeze_embeddings", "true"]) == 0
    tokenizer, task = AutoTokenizer.from_pretrained(folder), get_task("sst2")
    # the teacher's 8,000 rows are a prefix of these; on the 872 validation rows 0.2 points would be less than two rows
    splits, task = load_splits(str(glue_dir), task, ["train"], max_samples={"train": 12000})
    rows = tokenize_splits(splits, task, tokenizer, 64)["train"]
    calibration = list(make_dataloader(rows.select(range(256)), tokenizer, 32, shuffle=True, seed=0))
    held_back = sort_by_length(rows.select(range(8000, 12000)))
    development = make_dataloader(held_back, tokenizer, 64, shuffle=False, seed=0)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return model, calibration[:CALIBRATION_BATCHES], development, Accelerator()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("num_segments", "points", "agreement"), [(8, 0.5, 0.985), (16, 0.2, 0.995)])
def test_fitted_swap_keeps_the_accuracy_without_training(original, num_segments, points, agreement, per_channel):
    model, calibration, development, accelerator = original
    swapped = copy.deepcopy(model)
    lma_hf.swap_activations_(swapped, lma_hf.LMAConfig(num_segments=num_segments, init="fit", per_channel=per_channel))
    lma_hf.calibrate_(swapped, calibration)
    logits, labels = predict(model, development, accelerator)
    swapped_logits, _ = predict(swapped, development, accelerator)
    before, after = (100 * (x.argmax(-1) == labels).mean() for x in (logits, swapped_logits))
    assert abs(before - after) <= points
    assert (logits.argmax(-1) == swapped_logits.argmax(-1)).mean() >= agreement
    assert before > 80
