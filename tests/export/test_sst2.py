"""A real BERT (MiniLM-L6) fine-tuned on SST-2, swapped to LMA, exported: the 872 validation sentences."""

import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lma_hf
from lma_hf.cli.__main__ import main
from lma_hf.data.quickstart import fetch_pretrained
from lma_hf.export import verify
from lma_hf.export.folder import ONNX, QUANTIZED
from lma_hf.export.program import exportable

pytestmark = pytest.mark.slow
OPTIMUM_PYTHON = os.environ.get("LMA_HF_OPTIMUM_PYTHON")
OPTIMUM = """
import json, sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

folder, texts = json.loads(sys.argv[1])
model, tokenizer = ORTModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
print(json.dumps(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()))
"""


@pytest.fixture(scope="module")
def validation(glue_dir):
    return pd.read_parquet(glue_dir / "sst2" / "validation.parquet")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, glue_dir):
    pretrained = fetch_pretrained(tmp_path_factory.mktemp("cache"))
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--task_name", "sst2", "--dataset", str(glue_dir), "--max_train_samples", "4000", "--max_length", "64"]
    flags += ["--model_name_or_path", str(pretrained), "--output_dir", str(folder), "--num_train_epochs", "1"]
    assert main(["teach", *flags, "--freeze_embeddings", "true"]) == 0
    return folder


@pytest.fixture(scope="module", params=["gelu", "lma per channel", "lma continuous"])
def world(request, tmp_path_factory, teacher_dir, validation):
    """(model, tokenizer, exported folder, validation batches)."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    model = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    texts = list(validation.sentence)
    batches = [
        dict(tokenizer(texts[at : at + 32], padding=True, return_tensors="pt")) for at in range(0, len(texts), 32)
    ]
    if request.param != "gelu":
        continuous = request.param == "lma continuous"
        lma_hf.swap_activations_(
            model, lma_hf.LMAConfig(init="fit", continuous=continuous, per_channel=not continuous)
        )
        lma_hf.calibrate_(model, batches[:8])
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    exported = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", "--model_dir", str(folder), "--output_dir", str(exported), "--quantize", "int8"]) == 0
    return model, tokenizer, exported, batches


def test_onnx_is_the_model(world):
    model, _, exported, batches = world
    on_edge = verify.rows_on_edge(exportable(model), batches)
    expected = verify.logits_of_model(model, batches)
    outcome = verify.compare(expected, verify.onnx_runner(exported / ONNX), batches, on_edge)
    assert outcome.num_rows + outcome.num_on_edge == 872
    assert outcome.max_logit_difference <= verify.TOLERANCE
    assert outcome.same_predictions == outcome.num_rows
    # an untrained fit has small jumps; only rounding stands between the two
    assert outcome.max_difference_on_edge <= 5e-3


def test_int8_is_small_and_loses_at_most_a_point(world, validation):
    _, _, exported, batches = world
    labels, accuracy = validation.label.to_numpy(), {}
    for name in (ONNX, QUANTIZED):
        logits = np.concatenate([*map(verify.onnx_runner(exported / name), batches)])
        accuracy[name] = 100 * (logits.argmax(-1) == labels).mean()
    assert accuracy[ONNX] > 75
    assert accuracy[QUANTIZED] >= accuracy[ONNX] - 1
    assert (exported / QUANTIZED).stat().st_size <= 0.3 * (exported / ONNX).stat().st_size


@pytest.mark.skipif(
    OPTIMUM_PYTHON is None,
    reason="LMA_HF_OPTIMUM_PYTHON names no Python with optimum-onnx, which wants transformers < 4.58, unlike us",
)
def test_optimum_loads_and_runs_it(world):
    model, tokenizer, exported, _ = world
    texts = ["a good film", "bad"]
    command = [OPTIMUM_PYTHON, "-c", OPTIMUM, json.dumps([str(exported), texts])]
    logits = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (expected,) = verify.logits_of_model(model, [dict(tokenizer(texts, padding=True, return_tensors="pt"))])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
