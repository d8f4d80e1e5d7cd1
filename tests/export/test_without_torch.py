"""An exported student in a process where torch and transformers cannot be imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lma_hf.export.folder import ONNX, QUANTIZED, export_model

TEXTS = ["a good film", "bad", "the worst story of all time , and the most boring"]
PROGRAM = """
import json, sys
for name in ("torch", "transformers", "lma_hf", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it is an error
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, texts = json.loads(sys.argv[1])
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_padding()
encoded = tokenizer.encode_batch(texts)
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
logits = {}
for file in ("model.onnx", "model_quantized.onnx"):
    session = onnxruntime.InferenceSession(folder + "/" + file)
    inputs = {
        entry.name: np.array([getattr(row, columns[entry.name]) for row in encoded])
        for entry in session.get_inputs()
    }
    logits[file] = session.run(None, inputs)[0].tolist()
print(json.dumps(logits))
"""


@pytest.fixture(scope="module")
def exported(student, tiny_tokenizer, tmp_path_factory):
    """The student's folder, exported after its tokenizer has cut some text short."""
    tiny_tokenizer(TEXTS, truncation=True, max_length=6, padding="max_length")
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(student, tiny_tokenizer, folder, quantize="int8", max_length=40)
    return folder


@pytest.fixture(scope="module")
def logits(exported):
    arguments = [sys.executable, "-c", PROGRAM, json.dumps([str(exported), TEXTS])]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def test_logits_are_those_of_the_model(logits, student, tiny_tokenizer):
    with torch.no_grad():
        expected = student(**tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(logits[ONNX], expected, rtol=0, atol=1e-4)
    assert np.isfinite(logits[QUANTIZED]).all()
