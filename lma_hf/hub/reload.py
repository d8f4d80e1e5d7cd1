"""The outputs by which two loads of a model are compared; run as a script, those of a load without lma_hf.

python -P reload.py FOLDER OUTPUTS.safetensors NUM_THREADS
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [
    "a film",
    "The quick brown fox jumps over the lazy dog, again and again, until nobody is watching any more.",
    "Prices rose by 3.5 % in March 2021; the bank's shares fell.",
    "?",
]
MAX_LENGTH = 32


@torch.inference_mode()
def outputs(model, tokenizer):
    """Name -> tensor: token ids and logits of fixed texts, each for itself and all in one padded batch."""
    model.eval()
    batches = {f"text {index}": [text] for index, text in enumerate(TEXTS)}
    if tokenizer.pad_token is not None:
        batches["all texts"] = TEXTS
    result = {}
    for name, texts in batches.items():
        length = min(MAX_LENGTH, tokenizer.model_max_length)
        batch = tokenizer(texts, padding=len(texts) > 1, truncation=True, max_length=length, return_tensors="pt")
        result[f"{name}, token ids"] = batch["input_ids"]
        result[f"{name}, logits"] = model(**batch).logits.contiguous()
    return result


def main():
    folder, file, num_threads = sys.argv[1:]
    # what follows must do without the package, even where it is installed
    sys.modules["lma_hf"] = None
    # sums depend on how many threads share them
    torch.set_num_threads(int(num_threads))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=True
    )
    save_file(outputs(model, tokenizer), file)


if __name__ == "__main__":
    main()
