"""A user's fresh process: transformers' own loading, nothing else; run by test_reload.

    reload_worker.py FOLDER package        # after `import lma_hf`
    reload_worker.py FOLDER remote_code    # where lma_hf cannot be imported, by the code that lies beside the model

Reads FOLDER/plan.json (name -> auto class), loads FOLDER/name for each, and writes FOLDER/results-<way>.pt.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def load_and_run(folder, name, auto_class, inputs, options):
    model = getattr(transformers, auto_class).from_pretrained(folder / name, **options)
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


def main(folder, way):
    if way == "package":
        import lma_hf  # noqa: F401 (the import alone must be enough)
    else:
        sys.modules["lma_hf"] = None  # importing it raises ImportError
    options = {"trust_remote_code": True} if way == "remote_code" else {}
    torch.set_num_threads(1)
    inputs = torch.load(folder / "inputs.pt")
    plan = json.loads((folder / "plan.json").read_text())
    results = {name: load_and_run(folder, name, auto_class, inputs, options) for name, auto_class in plan.items()}
    pipeline = transformers.pipeline(
        "text-classification", str(folder / "with-tokenizer"), device="cpu", top_k=None, **options
    )
    results["pipeline"] = pipeline(["a good movie", "the story is bad"])
    results["from_lma_hf"] = sorted(name for name in sys.modules if name.startswith("lma_hf."))
    results["remote_code"] = sorted(name for name in sys.modules if name.startswith("transformers_modules."))
    torch.save(results, folder / f"results-{way}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
