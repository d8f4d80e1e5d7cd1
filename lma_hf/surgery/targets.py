"""Which modules are FFN activations: found by the structure of the model, whatever its class."""

import re
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from lma_hf.errors import SurgeryError
from lma_hf.modeling.modeling_lma import OURS

# in torch's module of activations, but no elementwise functions
NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU)


@dataclass(frozen=True)
class FFNSite:
    """One FFN block of a model: the fqns (relative to the base model) of its two linear maps and its activation.

    In a gated block `up` is the map whose output goes into the activation or, where one map makes both halves, that.
    Attributes: width: the units that the activation sees. gated: whether its output is multiplied by a second half.
    """

    up: str
    activation: str
    down: str
    width: int
    gated: bool


def ffn_sites(model):
    """Every FFN block of a model, each shared block once: an activation between two linear maps.

    Raises: SurgeryError, which says what is there instead, if the model has none.
    """
    base = getattr(model, "base_model", model)
    sites = {}
    # with duplicates, since one activation may serve several layers; a shared layer still counts once
    for fqn, module in base.named_modules(remove_duplicate=False):
        if fqn and (is_activation(module) or isinstance(module, OURS)):
            parent, _, child = fqn.rpartition(".")
            site = _site_at(base, parent, child)
            if site is not None:
                sites.setdefault((id(base.get_submodule(parent)), child), site)
    if not sites:
        raise SurgeryError(f"no FFN activation found in {type(model).__name__}: {why_none(model)}")
    return list(sites.values())


def why_none(model):
    """Why a model has no FFN site that can be swapped, in a few words."""
    found = {
        fqn: type(module).__name__
        for fqn, module in model.named_modules()
        if is_activation(module) and _layers_around(model, fqn)
    }
    if not found:
        return "its FFN calls a function, there is no activation module to swap"
    fqn, name = next(iter(found.items()))
    return (
        f"its activations, such as {fqn} ({name}), are not between two linear maps (fused or convolutional FFN); name "
        "modules with target_modules or filter_fn"
    )


def _site_at(base, parent, child):
    """The FFN around the activation `parent.child`, or None.

    Its linear maps stand beside it (GPT-2, Llama, BART), or the first beside it and the second in a later part of the
    layer (BERT's intermediate and output).
    """
    activation = f"{parent}.{child}".lstrip(".")
    if not _layers_around(base, activation):
        return None  # in a pooler or a head
    beside = _linear_maps(base.get_submodule(parent), parent)
    for down in reversed(beside):
        ups = [up for up in beside if up != down and _fit(beside[up], beside[down])]
        if ups:
            return _site(ups, activation, down, beside[ups[0]], beside[down])
    if len(beside) == 1:
        ((up, first),) = beside.items()
        for down, second in _later_maps(base, parent):
            if _fit(first, second):
                return _site([up], activation, down, first, second)
    return None


def _site(ups, activation, down, first, second):
    width = _sizes(second)[0]
    return FFNSite(ups[0], activation, down, width, gated=len(ups) > 1 or _sizes(first)[1] != width)


def _linear_maps(module, prefix):
    """Fqn -> module of the linear maps among a module's children, in their order."""
    prefix = f"{prefix}." if prefix else ""
    return {prefix + name: child for name, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}


def _later_maps(base, fqn):
    """The linear maps that come after the module at `fqn` in the same layer: beside it, or one level deeper."""
    parent, _, name = fqn.rpartition(".")
    if isinstance(base.get_submodule(parent), (nn.ModuleList, nn.Sequential)):
        return  # what comes after is another layer
    siblings = list(base.get_submodule(parent).named_children())
    after = siblings[[sibling for sibling, _ in siblings].index(name) + 1 :] if fqn else []
    for sibling, module in after:
        sibling = f"{parent}.{sibling}".lstrip(".")
        yield from {sibling: module}.items() if isinstance(module, (nn.Linear, Conv1D)) else ()
        yield from _linear_maps(module, sibling).items()


def _sizes(module):
    """(inputs, outputs) of a linear map; GPT-2's Conv1D keeps its weight the other way round."""
    return tuple(module.weight.shape) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _fit(up, down):
    """Whether two linear maps make an FFN: back to the width that it started from; a gate may double the inner one."""
    (outer, inner), (width, back) = _sizes(up), _sizes(down)
    return back == outer and inner in (width, 2 * width)


def layer_lists(model):
    """Fqns, relative to the base model, of the module lists that hold the layers with FFNs (several for ALBERT)."""
    around = [_layers_around(model.base_model, site.activation)[-1] for site in ffn_sites(model)]
    return list(dict.fromkeys(around))


def _layers_around(base, fqn):
    """Fqns of the module lists (and sequences) that the parent of the module at `fqn` lies in; "" is `base` itself."""
    parts = fqn.split(".")
    around = [".".join(parts[:end]) for end in range(len(parts) - 1)]
    return [name for name in around if isinstance(base.get_submodule(name), (nn.ModuleList, nn.Sequential))]


def base_prefix(model):
    """Prefix that turns a fqn of the base model into a fqn of `model`."""
    return "" if getattr(model, "base_model", model) is model else f"{model.base_model_prefix}."


def is_activation(module):
    """Whether a module is one of torch's or transformers' elementwise activation classes."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "transformers.activations") and not isinstance(
        module, NOT_ELEMENTWISE
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
