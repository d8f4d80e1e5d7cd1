"""Speed and size of a saved model: in PyTorch, in ONNX Runtime, and there in int8."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lma_hf.compare.activation_benchmark import kernel_of
from lma_hf.compare.timing import Candidate, Setting, measure
from lma_hf.export.folder import ONNX, QUANTIZED, export_model
from lma_hf.export.program import input_names
from lma_hf.export.verify import onnx_runner

EXPORT_CANDIDATES = ("pytorch", "onnx", "onnx int8")
BATCHES = ((1, 128), (32, 128))  # sentences, tokens of each
FILES = {"onnx": ONNX, "onnx int8": QUANTIZED}


def measure_exports(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    threads: int,
    names: Sequence[str] = EXPORT_CANDIDATES,
    repeats: int = 20,
) -> Iterator[list[dict[str, Any]]]:
    """Export a model and time it on random tokens, inference in float32; all candidates use as many threads.

    Args: max_length: as in `export_model`, which says what is raised. names: of EXPORT_CANDIDATES.
    Yields: the rows of `lma_hf.compare.timing.measure`, a group of candidates for each of BATCHES.
    """
    inputs = input_names(model, tokenizer)
    with TemporaryDirectory() as folder:
        exported = Path(folder) / "export"
        export_model(model, tokenizer, exported, quantize="int8", max_length=max_length)
        runners = {name: onnx_runner(exported / FILES[name], threads) for name in names if name in FILES}
        sizes = {name: (exported / FILES[name]).stat().st_size / 1e6 for name in runners}
        for rows, length in BATCHES:
            batch = random_batch(inputs, model.config.vocab_size, rows, min(length, max_length or length))
            candidates = {
                name: Candidate(partial(run, batch), "onnxruntime", None, sizes[name]) for name, run in runners.items()
            }
            if "pytorch" in names:
                candidates = {"pytorch": _in_pytorch(model, batch), **candidates}
            shape = "x".join(map(str, batch["input_ids"].shape))
            yield measure(Setting("export", shape, "float32", threads, "inference"), candidates, repeats)


def _in_pytorch(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Candidate:
    return Candidate(partial(model.eval(), **batch), kernel_of(model), None, size_in_memory_mb(model))


def size_in_memory_mb(model: nn.Module) -> float:
    """Size of parameters and buffers, each once, in MB (1e6 bytes); that of the saved weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6


def random_batch(names: Sequence[str], vocab_size: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Full rows of random tokens, for the inputs named."""
    ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {name: batch[name] for name in names}
