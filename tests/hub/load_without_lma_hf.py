"""Loads a model from the hub in every way that works without lma_hf, and writes the outputs.

python load_without_lma_hf.py REPO_ID OUTPUTS.safetensors
"""

import sys

sys.modules["lma_hf"] = None

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

repo_id, file = sys.argv[1:]
trust = {"trust_remote_code": True}
assert AutoConfig.from_pretrained(repo_id, **trust).ffn_activation["name"] == "lma"
tokenizer = AutoTokenizer.from_pretrained(repo_id)
batch = tokenizer(["a good film", "the dog , the cat and the car"], padding=True, return_tensors="pt")
with torch.inference_mode():
    outputs = {
        "logits": AutoModelForSequenceClassification.from_pretrained(repo_id, **trust)(**batch).logits,
        "hidden": AutoModel.from_pretrained(repo_id, **trust)(**batch).last_hidden_state,
    }
classify = pipeline("text-classification", repo_id, function_to_apply="none", **trust)
outputs["pipeline"] = torch.tensor([answer["score"] for answer in classify("a good film", top_k=None)])
save_file(outputs, file)
print(*sorted({name.split(".")[-1] for name in sys.modules if name.startswith("transformers_modules.")}))
