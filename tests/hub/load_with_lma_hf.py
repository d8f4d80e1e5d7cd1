"""Loads a model from the hub with lma_hf, where none of the code that lies beside it may run.

python load_with_lma_hf.py REPO_ID OUTPUTS.safetensors
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import lma_hf

repo_id, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repo_id)
batch = tokenizer(["a good film", "the dog , the cat and the car"], padding=True, return_tensors="pt")
model = AutoModelForSequenceClassification.from_pretrained(repo_id)
with lma_hf.use_kernel("reference"), torch.inference_mode():
    save_file({"logits": model(**batch).logits}, file)
pipeline("text-classification", repo_id)("a good film")
assert any(isinstance(module, lma_hf.LMA) for module in model.modules())
print(*(name for name in sys.modules if name.startswith("transformers_modules.")))
