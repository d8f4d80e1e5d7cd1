"""A user's fresh process: loads FOLDER, model and tokenizer, and writes the logits of FOLDER/texts.json."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lma_hf  # noqa: F401 (the import alone must be enough)

folder = Path(sys.argv[1])
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
batch = tokenizer(json.loads((folder / "texts.json").read_text()), padding=True, return_tensors="pt")
with torch.no_grad():
    torch.save({"logits": model(**batch).logits, "tokenizer": type(tokenizer).__name__}, folder / "results.pt")
