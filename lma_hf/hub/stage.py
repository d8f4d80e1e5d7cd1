"""A copy of a run's folder as it will stand on the hub; the folder itself is never changed."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lma_hf.errors import PushRefusedError
from lma_hf.hub.public_records import ENVIRONMENT, RESULTS, RUN_CONFIG, write_public_records


def check_folder(model_dir):
    """Raises: PushRefusedError if the folder lacks something that belongs on the hub, or holds weights that do not."""
    folder = Path(model_dir)
    needed = {
        "config.json": "a model saved with save_pretrained",
        "tokenizer_config.json": "its tokenizer",
        RESULTS: "what the model scores",
        RUN_CONFIG: "how it was trained",
        ENVIRONMENT: "what it was trained on",
    }
    for name, what in needed.items():
        if not (folder / name).is_file():
            raise PushRefusedError(
                f"{folder} holds no {name} ({what}); push the output_dir of a finished `lma-hf distill` or `teach`"
            )
    files = weight_files(folder)
    if not files:
        raise PushRefusedError(f"{folder} holds no *.safetensors; save the model with save_pretrained")
    for file in files:
        check_finite(file)


def weight_files(folder):
    """The weights of a saved model, sorted."""
    return sorted(Path(folder).glob("*.safetensors"))


def check_finite(file):
    """Raises: PushRefusedError if a tensor in a safetensors file is NaN or infinite somewhere, or is unreadable."""
    try:
        wrong = [name for name, tensor in read_tensors(file) if not torch.isfinite(tensor.float()).all()]
    except (OSError, SafetensorError) as error:
        raise PushRefusedError(f"{file} cannot be read: {one_line(error)}; save the model again") from error
    if wrong:
        raise PushRefusedError(
            f"tensor {wrong[0]} in {file} holds NaN or infinity ({len(wrong)} such tensors); push a model whose "
            "training did not diverge"
        )


def read_tensors(file):
    """(name, tensor) of every tensor in a safetensors file, one at a time."""
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            yield name, tensors.get_tensor(name)


def load(model_dir):
    """(model, tokenizer) of a folder, with no network. Raises: PushRefusedError if it is no whole classifier."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            model_dir, dtype="auto", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged file makes the loaders raise nearly anything
        raise PushRefusedError(
            f"{model_dir} cannot be loaded: {type(error).__name__}: {one_line(error)}; save the model again"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            raise PushRefusedError(
                f"{model_dir} does not load as a whole: {what.replace('_', ' ')} {min(map(str, report[what]))} ...; "
                "push a sequence classification model saved with save_pretrained"
            )
    return model.eval(), tokenizer


def stage(model_dir, folder):
    """Write model, code, tokenizer and records into `folder`, as they go to the hub; the card comes later.

    Returns: (model, tokenizer), loaded from model_dir.
    Raises: PushRefusedError if the folder may not be pushed.
    """
    check_folder(model_dir)
    model, tokenizer = load(model_dir)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_same_weights(model_dir, folder)
    try:
        write_public_records(model_dir, folder)
    except ValueError as error:
        raise PushRefusedError(f"the records in {model_dir} cannot be read: {one_line(error)}") from error
    return model, tokenizer


def check_same_weights(model_dir, folder):
    """Raises: PushRefusedError if the weights of two folders are not the same names with the same bits."""
    before, after = (
        {name: tensor for file in weight_files(each) for name, tensor in read_tensors(file)}
        for each in (model_dir, folder)
    )
    differing = [
        name for name in sorted(before.keys() | after.keys()) if not same_bits(before.get(name), after.get(name))
    ]
    if differing:
        raise PushRefusedError(
            f"saving {model_dir} again changes the weights {differing[0]} ({len(differing)} in all); save the model "
            "with the transformers that is installed here"
        )


def same_bits(a, b):
    """Whether two tensors have the same dtype, shape and bits; None is no tensor."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (a, b)))


def one_line(error):
    """An error's text without its line breaks."""
    return " ".join(str(error).split())
