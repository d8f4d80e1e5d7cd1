"""A user's fresh process: `import lma_hf` and transformers' own loading, nothing else; run by test_reload.

Reads FOLDER/plan.json (name -> auto class), loads FOLDER/name for each, and writes FOLDER/results.pt.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

import lma_hf  # noqa: F401 (the import alone must be enough)


def load_and_run(folder, name, auto_class, inputs):
    model = getattr(transformers, auto_class).from_pretrained(folder / name)
    return {
        "logits": model(**inputs).logits.detach(),
        "state": model.state_dict(),
        "training": model.training,
        "activations": {
            fqn: f"{type(module).__module__}.{type(module).__qualname__}"
            for fqn, module in model.named_modules()
            if "act" in fqn.rpartition(".")[2]
        },
        "instance_attributes": sorted(set(vars(model)) - {"config", "training", "_modules"}),
    }


def main(folder):
    torch.set_num_threads(1)
    inputs = torch.load(folder / "inputs.pt")
    plan = json.loads((folder / "plan.json").read_text())
    results = {name: load_and_run(folder, name, auto_class, inputs) for name, auto_class in plan.items()}
    pipeline = transformers.pipeline("text-classification", str(folder / "with-tokenizer"), device="cpu", top_k=None)
    results["pipeline"] = pipeline(["a good movie", "the story is bad"])
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
