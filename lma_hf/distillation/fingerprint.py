"""What a teacher's answers depend on, as hashes."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import torch


def digest(*parts):
    """128-bit hash of byte strings, as hex text."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_of(value):
    """Hash of anything that JSON can hold, whatever the order of its keys."""
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def weights_fingerprint(model):
    """Hash of a model's parameters and saved buffers: names, types, shapes and bits."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def config_fingerprint(model):
    """Hash of a model's class and config, without where it was loaded from and by which release."""
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    return digest_of([type(model).__name__, config])


def tokenizer_fingerprint(tokenizer):
    """Hash of what the tokenizer does to a text, without the truncation that its last call left behind."""
    settings = [tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.model_input_names]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_of([type(tokenizer).__name__, tokenizer.get_vocab(), *settings])
    rules = json.loads(backend.to_str())
    return digest_of([{**rules, "truncation": None, "padding": None}, *settings])


def row_hashes(dataset):
    """A 128-bit hash of every row's model inputs, labels aside. Args: dataset: tokenized, of lists of integers."""
    names = sorted(set(dataset.column_names) - {"labels"})
    columns = [_ragged(dataset, name) for name in names]
    hashes = np.empty(len(dataset), "S16")
    for row in range(len(dataset)):
        state = hashlib.blake2b(digest_size=16)
        for name, (values, offsets) in zip(names, columns, strict=True):
            state.update(name.encode())
            state.update(values[offsets[row] : offsets[row + 1]])
        hashes[row] = state.digest()
    return hashes


def row_lengths(dataset):
    """Tokens of every row."""
    return np.diff(_ragged(dataset, "input_ids")[1])


def _ragged(dataset, name):
    """(values, offsets) of a column of lists of integers."""
    column = dataset.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    column = column.cast(pa.list_(pa.int64()))
    offsets = column.offsets.to_numpy()
    return column.flatten().to_numpy(), offsets - offsets[0]


class RowIndex:
    """Where the answer to each row of a dataset stands: every different row once, the longest first.

    Neither the order of the dataset nor its labels matter, so that shuffled or repeated rows share their answers.

    Attributes:
        positions: of every row of the dataset. rows: a row of the dataset for every position.
        lengths: tokens at every position. fingerprint: hash of the set of rows.
    """

    def __init__(self, dataset):
        unique, first, inverse = np.unique(row_hashes(dataset), return_index=True, return_inverse=True)
        lengths = row_lengths(dataset)[first]
        order = np.lexsort((unique, -lengths))
        self.positions = np.argsort(order)[inverse]
        self.rows, self.lengths = first[order], lengths[order]
        self.fingerprint = digest(unique.tobytes())
