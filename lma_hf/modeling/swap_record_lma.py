"""How a swap of activations stands in a model's config, so that `from_pretrained` can do it again."""

import functools
from typing import NamedTuple

import torch
from transformers.activations import ACT2FN

from .configuration_lma import BASELINES, BaselineConfig, LMAConfig, settings_from_dict, settings_to_dict

# Our activations' names where a config names one. transformers has a "prelu" and a "swish" (SiLU) of its own.
HIDDEN_ACT = {"lma": "lma", **{name: f"lma_hf_{name}" for name in BASELINES}}
NATIVE = ("relu", "gelu")
QUANT_METHOD = "lma_hf"
# Before the activation's name in the config of a model whose weights are packed. Without our code it shall not load:
# transformers would warn, and draw such weights at random. (Where no name can be marked, see `PackedQuantizer`.)
PACKED_ACT = "packed_"
NAMES_OF_ACTIVATION = ("hidden_act", "activation", "activation_function", "hidden_activation", "ff_activation")
# the module whose classes a saved model's `auto_map` names
CODE = "modeling_lma"


class RecordedSwap(NamedTuple):
    """A swap as it stands in a config.

    Attributes:
        settings: of the activation that was put in. replaced: the name in ACT2FN of the one that stood there.
        keys: the config's attributes that named it, with dots where they are a part's ("text_config.hidden_act").
        modules: fqns relative to the base model. num_channels: the units at each of them.
        folded: whether the LMAs are constants; see `FoldedLMA`.
    """

    settings: LMAConfig | BaselineConfig
    replaced: str
    keys: list[str]
    modules: list[str]
    num_channels: list[int | None]
    folded: bool = False


def record_swap(config, swap, native=False):
    """Write a swap into the config. Args: native: transformers itself builds the model from the plain name."""
    for key in swap.keys:
        set_key(config, key, swap.settings.name if native else HIDDEN_ACT[swap.settings.name])
    config.ffn_activation = {**settings_to_dict(swap.settings), **swap._asdict()}
    del config.ffn_activation["settings"]


def read_swap(config):
    """The `RecordedSwap` in a config, or None."""
    recorded = getattr(config, "ffn_activation", None)
    if recorded is None:
        return None
    values = dict(recorded)
    # the first version knew one attribute, and one width for all
    keys = values.pop("keys", None) or ["hidden_act" if hasattr(config, "hidden_act") else "activation"]
    replaced, modules, num_channels = (values.pop(key) for key in ("replaced", "modules", "num_channels"))
    if not isinstance(num_channels, list):
        num_channels = [num_channels] * len(modules)
    folded = values.pop("folded", False)
    return RecordedSwap(settings_from_dict(values), replaced, keys, modules, num_channels, folded)


def native_activation(config):
    """The name of an activation that a swap has placed and transformers can build itself, or None."""
    swap = read_swap(config)
    return swap.settings.name if swap is not None and swap.settings.name in NATIVE else None


def forget_swap(config):
    """Inverse of `record_swap`; does nothing to a config without one."""
    swap = read_swap(config)
    if swap is not None:
        for key in swap.keys:
            set_key(config, key, swap.replaced)
        del config.ffn_activation
        _forget_code(config)


def _forget_code(config):
    """Take out of `auto_map` what a saved model with our activations has there; see `modeling_lma`."""
    names = getattr(config, "auto_map", None)
    if names is None:
        return
    config.auto_map = {key: name for key, name in names.items() if not str(name).startswith(f"{CODE}.")}
    if not config.auto_map:
        del config.auto_map


def needs_our_code(config):
    """Whether transformers alone cannot build the model of a config."""
    return is_packed(config) or names_our_activation(config)


def is_packed(config):
    """Whether a config says that weights are packed."""
    packed = getattr(config, "quantization_config", None)
    # as it stands in a file, or as transformers keeps it
    method = packed.get("quant_method") if isinstance(packed, dict) else getattr(packed, "quant_method", None)
    return method == QUANT_METHOD


def names_our_activation(config):
    """Whether a config names an activation that transformers alone does not know."""
    swap = read_swap(config)
    swapped = swap is not None and get_key(config, swap.keys[0]) in HIDDEN_ACT.values()
    return swapped or any(name.startswith(PACKED_ACT) for _, name in _named_activations(config))


def mark_activation(model):
    """Put PACKED_ACT before the activation's name in a model's config, unless that is unknown to transformers anyway.

    Names alone of activations that the model has from ACT2FN: I-BERT looks its own up, and takes no other name.
    """
    kinds = {type(module) for module in model.modules()}
    for key, name in _named_activations(model.config):
        known = name in ACT2FN and name not in HIDDEN_ACT.values() and not name.startswith(PACKED_ACT)
        if known and type(ACT2FN[name]) in kinds:
            setattr(model.config, key, PACKED_ACT + name)


def unmark_activation(config):
    """Inverse of `mark_activation`."""
    for key, name in _named_activations(config):
        setattr(config, key, name.removeprefix(PACKED_ACT))
    if not names_our_activation(config):
        _forget_code(config)


def _named_activations(config):
    """(key, name) of every attribute that names the activation."""
    named = ((key, getattr(config, key, None)) for key in NAMES_OF_ACTIVATION)
    return [(key, name) for key, name in named if isinstance(name, str)]


def activation_keys(config, activation):
    """Name in ACT2FN -> the config's attributes with that name, for names that give the function `activation`.

    Poolers' are left out: a swap leaves a pooler alone, and DeBERTa's looks its activation up in every pass.
    """
    found = {}
    for key, value in _strings(config):
        of_pooler = key.rpartition(".")[2].startswith("pooler")
        if not of_pooler and value in ACT2FN and same_function(ACT2FN[value], activation):
            found.setdefault(value, []).append(key)
    return found


@torch.no_grad()
def same_function(first, second):
    """Whether two activation modules compute the same, whatever their classes; tried on a grid."""
    x = torch.linspace(-8, 8, 257, device="cpu")
    return torch.allclose(first(x), second(x), atol=1e-6)


def _strings(config, prefix=""):
    """Every (key, value) of a config and of its parts whose value is a string."""
    parts = getattr(config, "sub_configs", {})
    for key, value in vars(config).items():
        if isinstance(value, str):
            yield prefix + key, value
        elif key in parts and value is not None:
            yield from _strings(value, f"{prefix}{key}.")


def get_key(config, key):
    """An attribute of a config, or with dots in its key that of a part."""
    return functools.reduce(getattr, key.split("."), config)


def set_key(config, key, value):
    """Inverse of `get_key`."""
    *parts, name = key.split(".")
    setattr(functools.reduce(getattr, parts, config), name, value)
