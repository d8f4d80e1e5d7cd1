"""A process in which lma_hf cannot be imported loads FOLDER/<model type> for each type and writes output.pt there."""

import sys
from pathlib import Path

import torch
from transformers import AutoModel


@torch.no_grad()
def main(folder, model_types):
    sys.modules["lma_hf"] = None
    torch.set_num_threads(1)
    for model_type in model_types:
        model = AutoModel.from_pretrained(folder / model_type, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        torch.manual_seed(0)
        output = model(**torch.load(folder / model_type / "inputs.pt")).to_tuple()
        first = next(value for value in output if isinstance(value, torch.Tensor) and value.is_floating_point())
        torch.save(first, folder / model_type / "output.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
