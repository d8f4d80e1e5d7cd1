"""How a replaced activation lives in a transformers model: building, padding mask, initialisation, reloading.

transformers builds an activation as `ACT2FN[config.hidden_act]`, without the settings and without knowing the site.
So our entries there answer with the activation that had been replaced, and the swap recorded in the config is done
again as soon as the model under construction is complete, before its weights are loaded.
"""

import functools
import inspect
import sys
import types
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS, ACT2FN

from .activation_baselines import APLU, Swish
from .activation_lma import LMA
from .configuration_lma import (
    BASELINES,
    BaselineConfig,
    LMAConfig,
    resolve_activation,
    settings_from_dict,
    settings_to_dict,
)

# Our activations' names in config.hidden_act. transformers has a "prelu" and a "swish" (SiLU) of its own.
HIDDEN_ACT = {"lma": "lma", **{name: f"lma_hf_{name}" for name in BASELINES}}
LEARNABLE = (LMA, nn.PReLU, Swish, APLU)
NATIVE = ("relu", "gelu")


def build_activation(settings, num_channels=None):
    """A new activation module from an `LMAConfig` or `BaselineConfig`.

    Raises: ValueError if the activation has parameters for each unit and `num_channels` is not given.
    """
    if needs_channels(settings) and num_channels is None:
        raise ValueError(f"{settings.name} with parameters for each unit needs num_channels, the units of the layer")
    if isinstance(settings, LMAConfig):
        return LMA.from_settings(settings, num_channels)
    if settings.name == "prelu":
        return nn.PReLU()
    if settings.name == "swish":
        return Swish(num_channels)
    if settings.name == "aplu":
        return APLU(num_channels, settings.num_segments)
    return ACT2CLS[settings.name]()


def needs_channels(settings):
    """Whether the activation has parameters of its own for each unit."""
    return settings.name in ("swish", "aplu") or getattr(settings, "per_channel", False)


def hidden_act_key(config):
    """The config attribute that names the FFN activation."""
    return "hidden_act" if hasattr(config, "hidden_act") else "activation"


def learnable_activations(model):
    """Fully qualified name -> module of every learnable activation in the model."""
    return {fqn: module for fqn, module in model.named_modules() if isinstance(module, LEARNABLE)}


def activation_parameters(model):
    """The parameters of the learnable activations (they get their own learning rate and no weight decay)."""
    return [parameter for module in learnable_activations(model).values() for parameter in module.parameters()]


class TokenMask:
    """Hands a model's attention mask to its LMA modules for the duration of one forward pass."""

    def __init__(self, position):
        self.value = None
        self.position = position

    def take(self, module, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > self.position:
            mask = args[self.position]
        self.value = mask

    def drop(self, module, args, output):
        self.value = None


def connect(model):
    """Connect freshly placed activations to their model: the padding mask, and `_init_weights` for missing keys.

    `model` is the module whose forward takes the attention mask; a plain nn.Module without one is left as it is.
    """
    names = list(inspect.signature(model.forward).parameters)
    # modules of a base model inside `model` are connected to that already
    fresh = [module for module in model.modules() if isinstance(module, LMA) and module.token_mask is None]
    if fresh and "attention_mask" in names:
        token_mask = TokenMask(names.index("attention_mask"))
        model.register_forward_pre_hook(token_mask.take, with_kwargs=True)
        model.register_forward_hook(token_mask.drop, always_call=True)
        for module in fresh:
            module.token_mask = token_mask
    if isinstance(model, PreTrainedModel):
        # on the instance: transformers' classes stay untouched
        model._init_weights = types.MethodType(_init_weights, model)


def _init_weights(self, module):
    type(self)._init_weights(self, module)
    if isinstance(module, LEARNABLE):
        module.reset_parameters()


def place(model, fqn, activation):
    """Put `activation` at `fqn` and keep what stood there, for `restore_activations_` and the fit."""
    # through __dict__, so that the old module is no child of the new one
    activation.__dict__["replaced"] = model.get_submodule(fqn)
    activation.train(model.training)
    model.set_submodule(fqn, activation)


def record_swap(config, settings, replaced, modules, num_channels, native=False):
    """Write the swap into the config, so that `from_pretrained` can do it again.

    Args: modules: fqns relative to the base model; replaced: the activation's name in ACT2FN; native: transformers
        itself builds the same model from the activation's plain name.
    """
    setattr(config, hidden_act_key(config), settings.name if native else HIDDEN_ACT[settings.name])
    config.ffn_activation = {
        **settings_to_dict(settings),
        "replaced": replaced,
        "num_channels": num_channels,
        "modules": list(modules),
    }


class RecordedSwap(NamedTuple):
    """A swap as it stands in a config; see `record_swap`."""

    settings: LMAConfig | BaselineConfig
    replaced: str
    modules: list[str]
    num_channels: int | None


def read_swap(config):
    """The `RecordedSwap` in a config, or None."""
    recorded = getattr(config, "ffn_activation", None)
    if recorded is None:
        return None
    values = dict(recorded)
    replaced, modules, num_channels = (values.pop(key) for key in ("replaced", "modules", "num_channels"))
    return RecordedSwap(settings_from_dict(values), replaced, modules, num_channels)


def native_activation(config):
    """The name of an activation that a swap has placed and transformers can build itself, or None."""
    swap = read_swap(config)
    return swap.settings.name if swap is not None and swap.settings.name in NATIVE else None


def forget_swap(config):
    """Inverse of `record_swap`; does nothing to a config without one."""
    swap = read_swap(config)
    if swap is not None:
        setattr(config, hidden_act_key(config), swap.replaced)
        del config.ffn_activation


def _swap_as_recorded(model):
    """Stands in for `post_init` of a model under construction: swap first, then the real `post_init`."""
    del model.post_init
    swap = read_swap(model.config)
    # a head that reads hidden_act asks for us too, but the FFNs are the base model's
    if swap is not None and model.base_model is model:
        for fqn in swap.modules:
            place(model, fqn, build_activation(swap.settings, swap.num_channels))
    connect(model)
    model.post_init()


def _model_under_construction():
    """The innermost PreTrainedModel whose constructor is on the call stack, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
        if isinstance(candidate, PreTrainedModel):
            return candidate
        frame = frame.f_back
    return None


def _activation_entry(name):
    """What `ACT2FN[...]` gives for one of our names; see the module's docstring."""
    model = _model_under_construction()
    if model is None:
        return build_activation(resolve_activation(name))
    model.post_init = functools.partial(_swap_as_recorded, model)
    swap = read_swap(model.config)
    return build_activation(resolve_activation(name)) if swap is None else ACT2FN[swap.replaced]


def register():
    """Add our activations to transformers' ACT2FN; done by `import lma_hf`."""
    for name, hidden_act in HIDDEN_ACT.items():
        ACT2FN[hidden_act] = (_activation_entry, {"name": name})
