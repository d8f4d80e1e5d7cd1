"""The in-place swap of FFN activations, and its inverse."""

import copy
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from lma_hf.errors import SurgeryError
from lma_hf.modeling.configuration_lma import resolve_activation
from lma_hf.modeling.modeling_lma import OURS, build_activation, connect, disconnect, needs_channels, place
from lma_hf.modeling.swap_record_lma import (
    NATIVE,
    RecordedSwap,
    activation_keys,
    forget_swap,
    read_swap,
    record_swap,
    same_function,
)
from lma_hf.surgery.targets import base_prefix, ffn_sites, is_activation, name_filter


@dataclass(frozen=True)
class SwapReport:
    """What a swap touched.

    Attributes:
        swapped: fqn -> class name of the activation that was replaced.
        left_alone: fqn -> class name of every other activation in the model.
    """

    swapped: dict[str, str]
    left_alone: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"swapped {len(self.swapped)}, left alone {len(self.left_alone)}"]
        lines += [f"  swapped     {fqn} (was {name})" for fqn, name in self.swapped.items()]
        lines += [f"  left alone  {fqn} ({name})" for fqn, name in self.left_alone.items()]
        return "\n".join(lines)


def swap_activations_(model, config="lma", *, target_modules=None, filter_fn=None):
    """Swap the FFN activations of `model` in place; pooler, heads and everything else stay as they are.

    Args:
        model: a transformers model, or any nn.Module without one inside when `target_modules` or `filter_fn` names
            the sites.
        config: an LMAConfig, a BaselineConfig, or a name ("lma", "gelu", ...; see `ACTIVATIONS`).
        target_modules: as in PEFT, a regex for whole fqns or a list of fqn suffixes; default: every FFN activation.
        filter_fn: a predicate (module, fqn) -> bool, in place of `target_modules`.
    Returns: SwapReport.
    Raises: SurgeryError if nothing matches, the root itself matches, the model was swapped before or is wrapped, its
        weights are offloaded, or the sites do not suit the activation; ValueError or TypeError for a `config` that is
        not allowed.
    """
    settings = resolve_activation(config)
    check_not_wrapped(model)
    _check_not_swapped(model)
    sites = _select_sites(model, target_modules, filter_fn)
    num_channels = _num_channels(model, sites) if needs_channels(settings) else [None] * len(sites)
    devices = [_device_at(model, fqn) for fqn in sites]
    swapped = {fqn: type(model.get_submodule(fqn)).__name__ for fqn in sites}
    if isinstance(model, PreTrainedModel):
        _record(model, settings, sites, num_channels)
    # a model is saved and reloaded in one dtype
    dtype = model.dtype if isinstance(model, PreTrainedModel) else None
    for fqn, channels, device in zip(sites, num_channels, devices, strict=True):
        place(model, fqn, build_activation(settings, channels).to(device=device, dtype=dtype))
    connect(model)
    return SwapReport(swapped, _other_activations(model, swapped))


def restore_activations_(model):
    """Put the activations back that `swap_activations_` replaced, also in a model that was saved and reloaded.

    Returns: SwapReport of the activations that were removed.
    Raises: SurgeryError if the model was not swapped, or is wrapped.
    """
    check_not_wrapped(model)
    swapped = swapped_modules(model)
    if not swapped:
        raise SurgeryError(f"nothing to restore: {type(model).__name__} holds no swapped activation")
    for fqn, module in swapped.items():
        model.set_submodule(fqn, module.__dict__["replaced"].train(module.training))
    if isinstance(model, PreTrainedModel):
        forget_swap(own_config(model))
    disconnect(model)
    return SwapReport({fqn: type(module).__name__ for fqn, module in swapped.items()})


def swapped_modules(model):
    """Fqn -> module of every activation that a swap has placed, in this process or before the model was saved."""
    swap = read_swap(model.config) if isinstance(model, PreTrainedModel) else None
    if swap is not None and swap.settings.name in NATIVE:
        # native: transformers has built these itself when the model was loaded
        for fqn in swap.modules:
            module = model.base_model.get_submodule(fqn)
            module.__dict__.setdefault("replaced", ACT2FN[swap.replaced])
    return {fqn: module for fqn, module in model.named_modules() if "replaced" in module.__dict__}


def check_not_wrapped(model):
    """Raises: SurgeryError for a transformers model inside another module: its config would not learn of a change."""
    if isinstance(model, PreTrainedModel):
        return
    for fqn, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            raise SurgeryError(
                f"{type(model).__name__} wraps the {type(part).__name__} at {fqn!r}, whose config would not record "
                f"the change; pass that model itself (.{fqn})"
            )


def _check_not_swapped(model):
    already = swapped_modules(model)
    # a PReLU may be transformers' own
    ours = tuple(kind for kind in OURS if kind is not nn.PReLU)
    already.update((fqn, module) for fqn, module in model.named_modules() if isinstance(module, ours))
    if already:
        raise SurgeryError(
            f"{type(model).__name__} was swapped before ({len(already)} sites, the first is {next(iter(already))}); "
            "call restore_activations_ first"
        )


def _select_sites(model, target_modules, filter_fn):
    """Fqns of the activations to swap, each site once. Raises: SurgeryError if that is not a usable selection."""
    if target_modules is not None and filter_fn is not None:
        raise SurgeryError("target_modules and filter_fn both given, allowed is one of them")
    if target_modules is None and filter_fn is None:
        return [base_prefix(model) + site.activation for site in ffn_sites(model)]
    matches = filter_fn or name_filter(target_modules)
    if matches(model, ""):
        raise SurgeryError(f"the filter matches the root {type(model).__name__}, which cannot be swapped in place")
    sites = {}
    # with duplicates, since one activation instance may serve several layers; a shared layer still counts once
    for fqn, module in model.named_modules(remove_duplicate=False):
        if fqn and matches(module, fqn):
            _check_activation(fqn, module)
            parent, _, child = fqn.rpartition(".")
            sites.setdefault((id(model.get_submodule(parent)), child), fqn)
    if not sites:
        there = list(_other_activations(model, {}))
        raise SurgeryError(
            f"no module of {type(model).__name__} matches {'filter_fn' if filter_fn else repr(target_modules)}; "
            f"its activations are {', '.join(there) or 'none'}"
        )
    return list(sites.values())


def _check_activation(fqn, module):
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        raise SurgeryError(f"{fqn} is a {type(module).__name__}, allowed are activations (no parameters, no children)")


def _num_channels(model, sites):
    """Units of the FFN at each of `sites`, which must all be known FFNs."""
    prefix = base_prefix(model)
    widths = {prefix + site.activation: site.width for site in ffn_sites(model)}
    outside = [fqn for fqn in sites if fqn not in widths]
    if outside:
        raise SurgeryError(f"{outside[0]} is not in an FFN, where alone parameters for each unit are possible")
    return [widths[fqn] for fqn in sites]


def _device_at(model, fqn):
    """Device of the parameters nearest to a site, None without any. Raises: SurgeryError if that is meta."""
    parts = fqn.split(".")
    for end in reversed(range(len(parts))):
        around = model.get_submodule(".".join(parts[:end]))
        for parameter in around.parameters():
            if parameter.is_meta:
                raise SurgeryError(
                    f"the weights around {fqn} are offloaded or not loaded (device meta); swap before that is done"
                )
            return parameter.device
    return None


def _record(model, settings, sites, num_channels):
    prefix = base_prefix(model)
    outside = [fqn for fqn in sites if not fqn.startswith(prefix)]
    if outside:
        raise SurgeryError(f"{outside[0]} is outside the base model {prefix[:-1]!r}, so the swap could not be saved")
    replaced, keys = _named_in_config(model, sites)
    modules = [fqn.removeprefix(prefix) for fqn in sites]
    native = settings.name in NATIVE and not _is_partial(model, sites, replaced)
    record_swap(own_config(model), RecordedSwap(settings, replaced, keys, modules, num_channels), native)


def _named_in_config(model, sites):
    """(name in ACT2FN, the config's attributes that say so) of the activations at `sites`."""
    first, *others = ((fqn, model.get_submodule(fqn)) for fqn in sites)
    for fqn, module in others:
        if type(module) is not type(first[1]) and not same_function(module, first[1]):
            raise SurgeryError(
                f"{type(model).__name__} has several FFN activations ({first[0]}: {type(first[1]).__name__}, {fqn}: "
                f"{type(module).__name__}), a swap replaces one kind; choose with target_modules"
            )
    named = activation_keys(model.config, first[1])
    if not named:
        raise SurgeryError(
            f"{first[0]} is a {type(first[1]).__name__}, which no attribute of {type(model.config).__name__} names; a "
            "saved model could not be built again"
        )
    return next(iter(named.items()))


def own_config(model):
    """Give the model a config of its own, since the object it was built from may serve other models too."""
    copies = {}
    own = copy.deepcopy(model.config, copies)
    for module in model.modules():
        config = getattr(module, "config", None)
        # parts of a model have parts of its config
        if id(config) in copies and isinstance(config, PreTrainedConfig):
            module.config = copies[id(config)]
    return own


def _is_partial(model, sites, replaced):
    """Whether activations of the kind that is replaced stay elsewhere, in other FFNs or in a head."""
    kind = type(ACT2FN[replaced]).__name__
    return kind in _other_activations(model, sites).values()


def _other_activations(model, swapped):
    return {
        fqn: type(module).__name__
        for fqn, module in model.named_modules(remove_duplicate=False)
        if is_activation(module) and fqn not in swapped
    }
