"""Speed and memory of what surrounds an activation: a whole FFN, and a whole transformer."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lma_hf.compare.activation_benchmark import BUILDERS, kernel_of
from lma_hf.compare.timing import MODES, Candidate, Setting, kept_bytes, measure, module_candidate
from lma_hf.modeling.activation_lma import LMA
from lma_hf.modeling.configuration_lma import LMAConfig
from lma_hf.surgery.calibrate import calibrate_
from lma_hf.surgery.swap import swap_activations_

TOKENS = 4096
FFN_SIZES = ((384, 1536), (768, 3072))  # hidden, intermediate
FFN_CANDIDATES = ("gelu", "relu", "lma", "lma per channel")

# MiniLM's six layers with BERT's vocabulary
MODEL_SIZES = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
}
BATCHES = {(1, 128): ("inference",), (32, 128): MODES}  # (sentences, tokens of each) -> modes
MODEL_CANDIDATES = ("gelu", "lma", "lma per channel")


def measure_ffns(
    dtypes: Sequence[str], threads: int, names: Sequence[str] = FFN_CANDIDATES, repeats: int = 20
) -> Iterator[list[dict[str, Any]]]:
    """Time Linear, activation, Linear on TOKENS tokens, with float32 weights; training is forward and backward.

    Args: dtypes: names of torch's dtypes; other than float32: autocast. names: of FFN_CANDIDATES.
    Yields: the rows of `lma_hf.compare.timing.measure`, a group of candidates at a time.
    """
    for hidden, intermediate in FFN_SIZES:
        for dtype in dtypes:
            for mode in MODES:
                shape = f"{TOKENS}x{hidden}x{intermediate}"
                candidates = {name: _ffn_candidate(name, hidden, intermediate, dtype, mode) for name in names}
                yield measure(Setting("ffn", shape, _precision(dtype), threads, mode), candidates, repeats)


def _ffn_candidate(name: str, hidden: int, intermediate: int, dtype: str, mode: str) -> Candidate:
    torch.manual_seed(0)
    x, grad = torch.randn(TOKENS, hidden), torch.randn(TOKENS, hidden).to(getattr(torch, dtype))
    block = nn.Sequential(
        nn.Linear(hidden, intermediate), BUILDERS[name](intermediate), nn.Linear(intermediate, hidden)
    )
    if isinstance(block[1], LMA):
        calibrate_(block, [{"input": x}])
    _autocast_(block, dtype)
    training = mode == "training"
    return module_candidate(block, x.requires_grad_(training), grad if training else None, kernel_of(block))


def measure_models(
    dtypes: Sequence[str], threads: int, names: Sequence[str] = MODEL_CANDIDATES, repeats: int = 20
) -> Iterator[list[dict[str, Any]]]:
    """Time a BERT classifier of MODEL_SIZES on random tokens; training is a whole step, AdamW's update included.

    Args: dtypes: names of torch's dtypes; other than float32: autocast. names: of MODEL_CANDIDATES.
    Yields: the rows of `lma_hf.compare.timing.measure`, a group of candidates at a time.
    """
    for batch, modes in BATCHES.items():
        for dtype in dtypes:
            for mode in modes:
                inputs = _random_inputs(*batch)
                candidates = {name: _model_candidate(name, inputs, dtype, mode) for name in names}
                shape = "x".join(map(str, batch))
                yield measure(Setting("model", shape, _precision(dtype), threads, mode), candidates, repeats)


def _random_inputs(sentences: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(BertConfig().vocab_size, (sentences, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def _model_candidate(name: str, inputs: Mapping[str, torch.Tensor], dtype: str, mode: str) -> Candidate:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**MODEL_SIZES))
    if name != "gelu":
        swap_activations_(model, LMAConfig(statistics="running", init="fit", per_channel=name == "lma per channel"))
        calibrate_(model, [inputs])
    _autocast_(model, dtype)
    if mode == "inference":
        return Candidate(partial(model.eval(), **inputs), kernel_of(model))
    model.train()
    # a rate at which random labels do not make the weights grow while the clock runs
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    step = partial(_optimizer_step, model, optimizer, inputs)
    return Candidate(step, kernel_of(model), kept_bytes(partial(model, **inputs), model))


def _optimizer_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Mapping[str, torch.Tensor]) -> None:
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _autocast_(module: nn.Module, dtype: str) -> None:
    """Let a module compute under autocast, as Accelerate does; float32: leave it."""
    if dtype != "float32":
        module.forward = torch.autocast("cpu", getattr(torch, dtype))(module.forward)


def _precision(dtype: str) -> str:
    return dtype if dtype == "float32" else f"{dtype} autocast"
