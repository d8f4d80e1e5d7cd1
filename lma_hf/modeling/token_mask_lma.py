"""How LMA learns which tokens are padding: hooks that hand a model's attention mask to the LMAs inside it."""

import functools
import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from .activation_lma import LMA

# Models whose mask does not say which positions the FFNs see, so that there every position counts: the sequence is
# shortened on the way (Whisper, Canine, SEW, Funnel), stands in the first dimension (XLNet), or goes to experts.
NO_TOKEN_MASK = ("whisper", "canine", "sew", "sew-d", "funnel", "xlnet", "switch_transformers")


class TokenMask:
    """The attention mask of the forward pass that is running, for the LMAs of one model.

    Its methods become hooks as they are, so that a deep copy of the model gets hooks of its own.
    """

    def __init__(self):
        self.value = None

    def take(self, position, module, args, kwargs):
        """A model's pre-hook. Args: position: of the mask among its arguments, if it is no keyword."""
        self.value = _argument(args, kwargs, position)

    def narrow(self, position, module, args, kwargs):
        """The pre-hook of a part: only a mask of its own that still tells tokens apart replaces the model's.

        (wav2vec 2's encoder gets one that fits its frames; others get one that is expanded, or additive.)
        """
        mask = _argument(args, kwargs, position)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not mask.is_floating_point():
            self.value = mask

    def drop(self, module, args, output):
        self.value = None


def _argument(args, kwargs, position):
    return kwargs["attention_mask"] if "attention_mask" in kwargs else args[position] if len(args) > position else None


def connect_masks(model):
    """Give every LMA of `model` that has none yet the mask of the innermost transformers model around it.

    A model whose forward takes no attention mask, or none that tells tokens apart, leaves its LMAs without.
    """
    masks = {}
    for fqn, module in model.named_modules():
        if not isinstance(module, LMA) or module.token_mask is not None:
            continue
        around = _modules_around(model, fqn)
        owner = max((at for at, part in enumerate(around) if isinstance(part, PreTrainedModel)), default=0)
        mask = masks.get(around[owner])
        if mask is None and (mask := _hook(around[owner])) is not None:
            masks[around[owner]] = mask
        if mask is not None:
            module.token_mask = mask
            for part in _before_layers(around[owner + 1 :]):
                if part not in masks and (position := _mask_position(part)) is not None:
                    part.register_forward_pre_hook(functools.partial(mask.narrow, position), with_kwargs=True)
                    masks[part] = mask


def _modules_around(model, fqn):
    """`model` and every module down to the one at `fqn`, which is left out."""
    around = [model]
    for name in fqn.split(".")[:-1]:
        around.append(around[-1].get_submodule(name))
    return around


def _before_layers(modules):
    for module in modules:
        if isinstance(module, nn.ModuleList):
            return
        yield module


def _hook(model):
    """A `TokenMask` that is filled in for each forward pass of `model`, or None if it takes no mask."""
    position = _mask_position(model)
    if position is None or getattr(getattr(model, "config", None), "model_type", None) in NO_TOKEN_MASK:
        return None
    mask = TokenMask()
    model.register_forward_pre_hook(functools.partial(mask.take, position), with_kwargs=True)
    model.register_forward_hook(mask.drop, always_call=True)
    return mask


def _mask_position(module):
    names = list(inspect.signature(module.forward).parameters)
    return names.index("attention_mask") if "attention_mask" in names else None
