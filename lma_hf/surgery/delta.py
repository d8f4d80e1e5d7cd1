"""Deltas: what a training of the activations (and of a few other parameters) changed, to be put onto the base."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lma_hf.errors import SurgeryError
from lma_hf.modeling.modeling_lma import learnable_activations
from lma_hf.modeling.swap_record_lma import read_swap
from lma_hf.surgery.swap import swap_activations_
from lma_hf.surgery.targets import base_prefix
from lma_hf.surgery.trainable import trained_parameters

TENSORS, RECORD = "delta.safetensors", "delta.json"
FORMAT = 1


def save_delta(model, folder, *, train="activations", base_model=None, state_dict=None):
    """Store what sets a swapped model apart from its base: delta.safetensors and delta.json, a few kilobytes.

    Args:
        model: a transformers model whose activations were swapped. folder: made if it is missing.
        train: what was trained, see `trained_parameters`; the rest has to be the base model's.
        base_model: name of the base, for the reader; what is checked is the hash of its tensors.
        state_dict: the model's weights, where processes hold only parts of them.
    Raises: SurgeryError if there is nothing to store, or if parameters were trained that `train` leaves out.
    """
    swap = getattr(getattr(model, "config", None), "ffn_activation", None)
    if swap is None or not learnable_activations(model):
        raise SurgeryError(f"{type(model).__name__} holds no learnable activation that was swapped in; save it whole")
    names = _delta_names(model, train)
    state = model.state_dict() if state_dict is None else state_dict
    record = {
        "format": FORMAT,
        "train": train,
        "base_model": base_model,
        "base_sha256": hash_tensors({name: value for name, value in state.items() if name not in names}),
        "ffn_activation": swap,
        "versions": {name: version(name) for name in ("lma_hf", "torch", "transformers")},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: state[name].detach().cpu().contiguous() for name in names}
    _replace(folder / TENSORS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _replace(folder / RECORD, lambda path: path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"))


def load_delta_(model, folder):
    """Put a delta onto its base model, in place; the result is bit by bit the model that `save_delta` was given.

    Args:
        model: the base model as it was before the swap, or swapped in the same way. A student with fewer layers than
            its teacher has `build_student(teacher, ..., activation=None)` as its base.
        folder: what `save_delta` has written.
    Returns: the model.
    Raises: SurgeryError if the delta cannot be read or belongs to another base; the model is then as before.
    """
    record, tensors = _read(Path(folder))
    swap = read_swap(SimpleNamespace(ffn_activation=record["ffn_activation"]))
    sites = {base_prefix(model) + fqn for fqn in swap.modules}
    _check_base(model, record, tensors, folder)
    if getattr(model.config, "ffn_activation", None) is None:
        swap_activations_(model, swap.settings, filter_fn=lambda module, fqn: fqn in sites)
    elif model.config.ffn_activation != record["ffn_activation"]:
        raise SurgeryError(f"the model was swapped in another way than the delta in {folder}; give the unswapped base")
    model.load_state_dict(tensors, strict=False)
    return model


def hash_tensors(tensors):
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order and the device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _delta_names(model, train):
    """Names in the state dict of what belongs to a delta: trained parameters, and the activations' buffers."""
    parameters = dict(model.named_parameters())
    trained = set(trained_parameters(model, train))
    frozen = any(not parameter.requires_grad for parameter in parameters.values())
    # where nothing is frozen, nobody has said yet what was trained; a base that differs is found by its hash
    lost = [
        name for name, parameter in parameters.items() if frozen and parameter.requires_grad and name not in trained
    ]
    if lost:
        raise SurgeryError(
            f"{lost[0]} and {len(lost) - 1} more parameters require grad but train={train!r} leaves them out; name "
            "what was trained, or save the model whole"
        )
    inside = tuple(f"{fqn}." for fqn in learnable_activations(model))
    return {name for name in model.state_dict() if name.startswith(inside) or name in trained}


def _check_base(model, record, tensors, folder):
    state = model.state_dict()
    found = hash_tensors({name: value for name, value in state.items() if name not in tensors})
    if found != record["base_sha256"]:
        raise SurgeryError(
            f"{type(model).__name__} is not the base of the delta in {folder}: its tensors hash to {found[:12]}, "
            f"those of the base to {record['base_sha256'][:12]}; give "
            f"{record['base_model'] or 'the base'} in the class, dtype and depth that was trained"
        )


def _read(folder):
    """(record, tensors) of a delta."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise SurgeryError(
            f"{folder} holds no delta that can be read: {reason}; give what save_delta wrote"
        ) from error
    if record.get("format") != FORMAT:
        raise SurgeryError(f"the delta in {folder} has format {record.get('format')!r}, allowed is {FORMAT}")
    return record, tensors


def _replace(path, write):
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.saving")
    write(temporary)
    os.replace(temporary, path)
