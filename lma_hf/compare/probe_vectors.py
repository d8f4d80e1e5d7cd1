"""What a pretrained model's FFNs do: the real token vectors that go into them and come out of them."""

from typing import NamedTuple

import torch
from torch import nn

from lma_hf.errors import ConfigError
from lma_hf.student.prune import unit_importance
from lma_hf.student.warmup import teacher_examples
from lma_hf.surgery.targets import ffn_sites

RANKING_BATCHES = 8


class Vectors(NamedTuple):
    """Inputs x and outputs y of one FFN, each of shape (tokens, hidden_size)."""

    x: torch.Tensor
    y: torch.Tensor


class FFN(NamedTuple):
    """One FFN of the model and what it was seen doing.

    Attributes:
        layer: counted from 0. up, activation, down: its modules.
        ranking: its units, the most important first.
        train, tuning, report: vectors to fit to, to choose learning rates by, and to report the error on.
    """

    layer: int
    up: nn.Module
    activation: nn.Module
    down: nn.Module
    ranking: torch.Tensor
    train: Vectors
    tuning: Vectors
    report: Vectors


def collect_ffns(model, layers, batches):
    """The FFNs of the chosen layers with their vectors, padding left out.

    Args:
        layers: numbers from 0; None takes the first, the middle and the last.
        batches: "train", "tuning" and "report" -> list of dicts of model inputs.
    Returns: list of `FFN`, in the order of `layers`.
    Raises: ConfigError if a layer does not exist or its FFN is gated; SurgeryError if the model has no FFN.
    """
    sites = _chosen_sites(model, layers)
    importance = unit_importance(model, batches["train"][:RANKING_BATCHES])
    parts = {part: collect_vectors(model, sites.values(), batches[part]) for part in batches}
    return [
        FFN(
            layer,
            *(model.base_model.get_submodule(fqn) for fqn in (site.up, site.activation, site.down)),
            importance[site.activation].argsort(descending=True, stable=True),
            **{part: vectors[index] for part, vectors in parts.items()},
        )
        for index, (layer, site) in enumerate(sites.items())
    ]


def collect_vectors(model, sites, batches):
    """The `Vectors` of every site over all real tokens of the batches."""
    sites = list(sites)
    seen = [teacher_examples(model, sites, batch) for batch in batches]
    return [Vectors(*(torch.cat(side) for side in zip(*of_site, strict=True))) for of_site in zip(*seen, strict=True)]


def _chosen_sites(model, layers):
    """Layer -> its `FFNSite`."""
    sites = ffn_sites(model)
    if layers is None:
        layers = sorted({0, len(sites) // 2, len(sites) - 1})
    outside = [layer for layer in layers if layer not in range(len(sites))]
    if outside:
        raise ConfigError(f"layers names {outside[0]}, the model has FFNs 0 to {len(sites) - 1}")
    gated = [layer for layer in layers if sites[layer].gated]
    if gated:
        raise ConfigError(
            f"the FFN of layer {gated[0]} in {type(model).__name__} is gated, a probe compares plain FFNs; take "
            "another model"
        )
    return {layer: sites[layer] for layer in layers}
