"""Which modules are quantized: linear layers and embeddings, by default all but those of the head."""

import re

from lma_hf.errors import SurgeryError
from lma_hf.modeling.packed_lma import PACKED, packable_kind
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.surgery.targets import base_prefix


def quantizable_modules(model, modules_to_not_convert=None):
    """Fqn -> module of what is to be quantized.

    Args:
        model: a transformers model.
        modules_to_not_convert: list of names of modules, or of what they lie in, that stay as they are ("pooler",
            "layer.0"). None: the head, which is what lies outside the base model. What `left_alone` names stays too.
    Raises: SurgeryError if nothing is left, a name fits nothing, the model is packed already, or a weight serves two
        modules, such as word embeddings and an output layer.
    """
    if packed_modules(model):
        raise SurgeryError(f"{type(model).__name__} is quantized already; call model.dequantize() first")
    found = candidates(model)
    if modules_to_not_convert is None:
        chosen = {fqn: module for fqn, module in found.items() if fqn.startswith(base_prefix(model))}
    else:
        _check_names(modules_to_not_convert, [*found, *left_alone(model)])
        chosen = {
            fqn: module
            for fqn, module in found.items()
            if not any(_within(fqn, name) for name in modules_to_not_convert)
        }
    if not chosen:
        raise SurgeryError(
            f"nothing to quantize in {type(model).__name__}: its linear layers and embeddings are "
            f"{', '.join(found) or 'none'}, and modules_to_not_convert is {modules_to_not_convert!r}"
        )
    _check_not_shared(model, chosen)
    return chosen


def candidates(model):
    """Fqn -> module of all linear layers and embeddings of a model that can be packed."""
    return {fqn: module for fqn, module in model.named_modules() if packable_kind(module) is not None}


def left_alone(model):
    """Fqn -> class name of linear layers and embeddings that compute in a way of their own and stay as they are."""
    return {
        fqn: type(module).__name__
        for fqn, module in model.named_modules()
        if isinstance(module, tuple(PACKED)) and packable_kind(module) is None
    }


def left_alone_text(left):
    """What `left_alone` returns, in one line; "" for nothing."""
    if not left:
        return ""
    named = ", ".join(f"{fqn} ({name})" for fqn, name in left.items())
    return f"left as they are, since they compute in a way of their own: {named}"


def by_layer(fqns):
    """Lists of the fqns, those of one layer (which have their first number in common) together, in their order."""
    layers = {}
    for fqn in fqns:
        inside = re.match(r"(.*?\.\d+)\.", fqn)
        layers.setdefault(inside[1] if inside else fqn, []).append(fqn)
    return list(layers.values())


def _check_names(names, fqns):
    for name in names:
        if not any(_within(fqn, name) for fqn in fqns):
            raise SurgeryError(f"modules_to_not_convert names {name!r}, but there are {', '.join(fqns)}")


def _within(fqn, name):
    return f".{name}." in f".{fqn}."


def _check_not_shared(model, chosen):
    first = {}
    for fqn, module in model.named_modules():
        other = first.setdefault(id(getattr(module, "weight", module)), fqn)
        if other != fqn and {other, fqn} & set(chosen):
            raise SurgeryError(
                f"{other} and {fqn} share a weight, which cannot be quantized; name both in modules_to_not_convert"
            )
