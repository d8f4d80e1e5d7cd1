"""How a replaced activation lives in a transformers model: building, initialisation, saving and reloading.

transformers builds an activation as `ACT2FN[config.hidden_act]`, without the settings and without knowing the site.
So our entries there answer with the activation that had been replaced, and the swap recorded in the config is done
again as soon as the model under construction is complete, before its weights are loaded.

A saved model carries this folder along, and its config's `auto_map` names classes of this module; see `saving_lma`.
"""

import functools
import sys
from contextlib import contextmanager

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS, ACT2FN

from .activation_baselines import APLU, GELUAffine, Swish
from .activation_lma import LMA, FoldedLMA
from .configuration_lma import LMAConfig, resolve_activation
from .quantizer_lma import register_quantizer
from .saving_lma import connect_saving
from .swap_record_lma import HIDDEN_ACT, PACKED_ACT, needs_our_code, read_swap
from .token_mask_lma import connect_masks

LEARNABLE = (LMA, nn.PReLU, Swish, APLU, GELUAffine)
OURS = (*LEARNABLE, FoldedLMA)


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
    if settings.name == "gelu_affine":
        return GELUAffine(num_channels)
    if settings.name == "swish":
        return Swish(num_channels)
    if settings.name == "aplu":
        return APLU(num_channels, settings.num_segments)
    return ACT2CLS[settings.name]()


def needs_channels(settings):
    """Whether the activation has parameters of its own for each unit."""
    return settings.name in ("gelu_affine", "swish", "aplu") or getattr(settings, "per_channel", False)


def learnable_activations(model):
    """Fully qualified name -> module of every learnable activation in the model."""
    return {fqn: module for fqn, module in model.named_modules() if isinstance(module, LEARNABLE)}


def activation_parameters(model):
    """The parameters of the learnable activations (they get their own learning rate and no weight decay)."""
    return [parameter for module in learnable_activations(model).values() for parameter in module.parameters()]


@contextmanager
def one_statistics_update(model):
    """Around the passes of one optimizer step: running statistics stand still, then move once, by all tokens seen.

    So the batches that a step is accumulated from see the same segments, and count as the one batch they make up.
    """
    modules = [module for module in model.modules() if isinstance(module, LMA)]
    for module in modules:
        module.hold_statistics()
    try:
        yield
    finally:
        for module in modules:
            module.release_statistics()


def place(model, fqn, activation):
    """Put `activation` at `fqn` and keep what stood there, for `restore_activations_` and the fit."""
    # through __dict__, so that the old module is no child of the new one
    activation.__dict__["replaced"] = model.get_submodule(fqn)
    activation.train(model.training)
    model.set_submodule(fqn, activation)


def connect(model):
    """Connect freshly placed activations to their model: the padding mask, `_init_weights`, and the code to save.

    Methods are set on the instance, see `connect_saving`.
    """
    connect_masks(model)
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and any(isinstance(module, OURS) for module in part.modules()):
            part._init_weights = functools.partial(_init_weights, part)
    connect_saving(model)


def disconnect(model):
    """Take the methods back that `connect` has set, in a model that holds none of our activations any more."""
    # packed weights need our code all the same
    needs_code = isinstance(model, PreTrainedModel) and needs_our_code(model.config)
    for part in model.modules():
        for name in ("_init_weights",) if needs_code else ("_init_weights", "save_pretrained"):
            part.__dict__.pop(name, None)


def _init_weights(self, module):
    type(self)._init_weights(self, module)
    if isinstance(module, OURS):
        module.reset_parameters()


def __getattr__(name):
    """The classes that `auto_map` names: transformers' own, once more, in a module that knows our activations."""
    base = getattr(transformers, name, None) if not name.startswith("_") else None
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if HIDDEN_ACT["lma"] not in ACT2FN:
        register()
    # a class of its own, since transformers marks those that come from remote code; but its modules are transformers'
    # own, so names of weights in a file (ViT, Mixtral) are to be translated as for them
    own = {"__module__": __name__, "__doc__": base.__doc__, "is_custom_code": classmethod(lambda cls: False)}
    remote_class = type(name, (base,), own)
    return globals().setdefault(name, remote_class)


def _swap_as_recorded(model):
    """Stands in for `post_init` of a model under construction: swap first, then the real `post_init`."""
    del model.post_init
    swap = read_swap(model.config)
    if swap is not None:
        _place_as_recorded(model.base_model, swap)
    connect(model)
    model.post_init()


def _place_as_recorded(base, swap):
    there = dict(base.named_modules(remove_duplicate=False))
    # a class may have a part of what was swapped only, such as T5's encoder
    sites = [site for site in zip(swap.modules, swap.num_channels, strict=True) if site[0] in there]
    if not sites:
        raise ValueError(
            f"the config records a swap of {swap.modules[0]} and others, none of which {type(base).__name__} has; "
            f"load the model with the class that was saved"
        )
    for fqn, num_channels in sites:
        activation = build_activation(swap.settings, num_channels)
        place(base, fqn, FoldedLMA.of(activation) if swap.folded else activation)


def _model_under_construction():
    """The PreTrainedModel whose constructor is on the call stack, or None: the outermost one whose config records a
    swap (a T5 builds its encoder, which is a model too), else the innermost."""
    models, frame = [], sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
        if isinstance(candidate, PreTrainedModel) and hasattr(candidate, "config") and candidate not in models:
            models.append(candidate)
        frame = frame.f_back
    swapped = [model for model in models if read_swap(model.config) is not None]
    return swapped[-1] if swapped else models[0] if models else None


def _activation_entry(build):
    """What `ACT2FN[...]` gives for one of our names; see the module's docstring. Args: build: () -> activation."""
    model = _model_under_construction()
    if model is None:
        return build()
    model.post_init = functools.partial(_swap_as_recorded, model)
    swap = read_swap(model.config)
    return build() if swap is None else ACT2FN[swap.replaced]


def _build_default(name):
    return build_activation(resolve_activation(name))


def register():
    """Tell transformers of our activations and packed weights; `import lma_hf` does, and a model's remote code."""
    for name in list(ACT2CLS):
        ACT2FN[PACKED_ACT + name] = (_activation_entry, {"build": functools.partial(ACT2FN.__getitem__, name)})
    for name, hidden_act in HIDDEN_ACT.items():
        ACT2FN[hidden_act] = (_activation_entry, {"build": functools.partial(_build_default, name)})
    register_quantizer()
