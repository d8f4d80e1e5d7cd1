"""Which modules are FFN activations: the layout of every supported architecture, in one table."""

import re
from dataclasses import dataclass

from torch import nn

from lma_hf.errors import SurgeryError


@dataclass(frozen=True)
class FFNLayout:
    """Where an architecture keeps its FFN blocks.

    Args:
        layers: the ModuleList of layers, relative to the base model.
        up, activation, down: the FFN's parts, relative to a layer.
        shared: the layers share weights (ALBERT), so the list is shorter than the model is deep.
    """

    layers: str
    up: str
    activation: str
    down: str
    shared: bool = False


_BERT = FFNLayout("encoder.layer", "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")
LAYOUTS = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "mpnet": _BERT,
    "distilbert": FFNLayout("transformer.layer", "ffn.lin1", "ffn.activation", "ffn.lin2"),
    "albert": FFNLayout(
        "encoder.albert_layer_groups.{group}.albert_layers", "ffn", "activation", "ffn_output", shared=True
    ),
}


@dataclass(frozen=True)
class FFNSite:
    """One FFN block of a model: the fqns (relative to the base model) of its two linear maps and its activation."""

    up: str
    activation: str
    down: str


def layout_of(model):
    """The FFN layout of a transformers model. Raises: SurgeryError for an architecture that is not in the table."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in LAYOUTS:
        raise SurgeryError(
            f"no FFN layout is known for {type(model).__name__} (model_type {model_type!r}), known are "
            f"{', '.join(LAYOUTS)}; name the modules with target_modules or filter_fn"
        )
    return LAYOUTS[model_type]


def layer_lists(model):
    """Fqns, relative to the base model, of the module lists that hold the layers (several for ALBERT's groups)."""
    layout = layout_of(model)
    if not layout.shared:
        return [layout.layers]
    return [layout.layers.format(group=group) for group in range(model.config.num_hidden_groups)]


def ffn_sites(model):
    """Every FFN block of a transformers model, each shared block once."""
    layout = layout_of(model)
    prefixes = [
        f"{layers}.{index}"
        for layers in layer_lists(model)
        for index in range(len(model.base_model.get_submodule(layers)))
    ]
    return [
        FFNSite(*(f"{prefix}.{part}" for part in (layout.up, layout.activation, layout.down))) for prefix in prefixes
    ]


def base_prefix(model):
    """Prefix that turns a fqn of the base model into a fqn of `model`."""
    return "" if getattr(model, "base_model", model) is model else f"{model.base_model_prefix}."


def is_activation(module):
    """Whether a module is one of torch's or transformers' activation classes."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "transformers.activations") and not isinstance(
        module, nn.MultiheadAttention
    )


def name_filter(target_modules):
    """Predicate for `target_modules` as PEFT has it: a string is a regex for the whole fqn, a list holds suffixes."""
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise SurgeryError(f"target_modules {target_modules!r} is not a regular expression: {error}") from None
        return lambda module, fqn: pattern.fullmatch(fqn) is not None
    suffixes = tuple(target_modules)
    return lambda module, fqn: any(fqn == suffix or fqn.endswith(f".{suffix}") for suffix in suffixes)
