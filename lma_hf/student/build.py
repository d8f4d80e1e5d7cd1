"""Student construction: shape, weights copied from the teacher, activation."""

import copy

import torch
from transformers.pytorch_utils import Conv1D

from lma_hf.errors import StudentError
from lma_hf.modeling.configuration_lma import LMAConfig, resolve_activation
from lma_hf.modeling.swap_record_lma import forget_swap, native_activation, read_swap, set_key
from lma_hf.student.layer_map import resolve_layer_map
from lma_hf.student.prune import keep_units, unit_importance
from lma_hf.surgery.calibrate import calibrate_
from lma_hf.surgery.swap import swap_activations_
from lma_hf.surgery.targets import base_prefix, ffn_sites, layer_lists


def build_student(
    teacher,
    num_layers=3,
    layer_map="uniform",
    activation=LMAConfig(),  # noqa: B008 - frozen
    *,
    intermediate_size=None,
    hidden_size=None,
    num_attention_heads=None,
    calibration_batches=None,
):
    """A student of the teacher's class with fewer layers and, if wanted, narrower FFNs.

    Layers are copied from the teacher layers that `layer_map` names; embeddings, pooler and head are copied. Label
    names, problem type and all else in the config survive. With `hidden_size` or `num_attention_heads` the student
    is freshly initialised instead, embeddings included.

    Args:
        teacher: a transformers model with one stack of layers, such as BERT, DistilBERT, ALBERT or GPT-2.
        num_layers, layer_map: see `resolve_layer_map`. (ALBERT's layers share their weights, whatever the map.)
        activation: LMAConfig, BaselineConfig or a name; None keeps the teacher's, or what a learnable one replaced.
        intermediate_size: FFN width; the teacher's most important units are kept (`unit_importance`).
        calibration_batches: model inputs, for the importance and for `calibrate_` of an LMA. Without them an LMA
            student still has to be calibrated before use.
    Returns: the student, in eval mode, on the teacher's device.
    Raises: StudentError for a request that the teacher cannot meet, SurgeryError if no FFN is found.
    """
    _check_one_stack(teacher)
    layers = resolve_layer_map(layer_map, num_layers, teacher.config.num_hidden_layers)
    from_scratch = hidden_size is not None or num_attention_heads is not None
    config = _student_config(teacher, layers, intermediate_size, hidden_size, num_attention_heads)
    batches = None if calibration_batches is None else list(calibration_batches)
    student = type(teacher)(config).to(device=teacher.device, dtype=teacher.dtype).eval()
    if not from_scratch:
        _copy_weights(teacher, student, layers, _units_to_keep(teacher, intermediate_size, batches))
    if activation is not None:
        swap_activations_(student, activation)
        if batches and resolve_activation(activation).name == "lma":
            calibrate_(student, batches)
    return student


def _check_one_stack(teacher):
    stacks = layer_lists(teacher)
    if len(stacks) > 1 and not shares_layers(teacher):
        raise StudentError(
            f"{type(teacher).__name__} has {len(stacks)} stacks of layers ({', '.join(stacks)}), allowed is one; "
            "students of encoder-decoders and of models in stages cannot be built"
        )


def shares_layers(model):
    """Whether the layers share weights (ALBERT), so that the list is shorter than the model is deep."""
    return hasattr(model.config, "num_hidden_groups")


def _ffn_width(config):
    """(config attribute that holds the FFN width, the width). Raises: StudentError if there is none."""
    # DistilBERT's name for it, and GPT-2's, where None is four times the hidden size
    for key in ("intermediate_size", "hidden_dim", "n_inner"):
        width = getattr(config, key, 0)
        width = 4 * config.hidden_size if width is None else width
        if isinstance(width, int) and width > 0:
            return key, width
    raise StudentError(f"{type(config).__name__} has no intermediate_size, so the width of the FFNs cannot be changed")


def _student_config(teacher, layers, intermediate_size, hidden_size, num_attention_heads):
    config = copy.deepcopy(teacher.config)
    forget_swap(config)
    if teacher_activation := native_activation(teacher.config):
        for key in read_swap(teacher.config).keys:
            set_key(config, key, teacher_activation)
    if intermediate_size is not None or hidden_size is not None:
        may_grow = hidden_size is not None or num_attention_heads is not None
        _set_widths(config, intermediate_size, hidden_size, may_grow)
    if num_attention_heads is not None:
        config.num_attention_heads = _positive("num_attention_heads", num_attention_heads)
    _check_heads(config.hidden_size, config.num_attention_heads)
    _set_layers(config, layers)
    return config


def _set_widths(config, intermediate_size, hidden_size, may_grow):
    key, old_width = _ffn_width(config)
    old_hidden = config.hidden_size
    if hidden_size is not None:
        config.hidden_size = _positive("hidden_size", hidden_size)
    if intermediate_size is None:
        intermediate_size = old_width * config.hidden_size // old_hidden
    _positive("intermediate_size", intermediate_size)
    if not may_grow and intermediate_size > old_width:
        raise StudentError(f"intermediate_size is {intermediate_size!r}, allowed are 1 to {old_width}, the teacher's")
    setattr(config, key, intermediate_size)


def _set_layers(config, layers):
    """As deep as `layers`, and every layer of its teacher layer's kind (`layer_types` of Qwen 2, for example)."""
    depth, config.num_hidden_layers = config.num_hidden_layers, len(layers)
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, key, [value[layer] for layer in layers])


def _positive(key, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StudentError(f"{key} is {value!r}, allowed are whole numbers from 1")
    return value


def _check_heads(hidden_size, heads):
    if hidden_size % heads:
        allowed = [n for n in range(1, min(hidden_size, 64) + 1) if hidden_size % n == 0]
        raise StudentError(
            f"hidden_size {hidden_size} is not divisible by num_attention_heads {heads}; allowed for it are "
            + ", ".join(map(str, allowed))
        )


def _units_to_keep(teacher, width, batches):
    """Activation fqn in the teacher -> units to keep, or None where the FFN keeps its width."""
    if width is None or width == _ffn_width(teacher.config)[1]:
        return None
    if not batches:
        raise StudentError(
            f"intermediate_size {width} below the teacher's {_ffn_width(teacher.config)[1]} needs calibration_batches "
            "to find the most important units; none were given"
        )
    gated = [site.activation for site in ffn_sites(teacher) if site.gated]
    if gated:
        raise StudentError(
            f"intermediate_size is {width}, but {gated[0]} is in a gated FFN, whose width is kept; drop it"
        )
    return {name: keep_units(score, width) for name, score in unit_importance(teacher, batches).items()}


@torch.no_grad()
def _copy_weights(teacher, student, layers, units):
    """Copy embeddings, pooler and head as they are, and every layer from the teacher layer it is mapped to."""
    lists = layer_lists(student)
    in_layers = tuple(f"{base_prefix(student)}{name}." for name in lists)
    rest = {name: value for name, value in teacher.state_dict().items() if not name.startswith(in_layers)}
    student.load_state_dict(rest, strict=False)
    sites = ffn_sites(teacher)
    for name in lists:
        targets = student.base_model.get_submodule(name)
        sources = layers if not shares_layers(student) else range(len(targets))
        for index, (target, source) in enumerate(zip(targets, sources, strict=True)):
            weights = _layer_weights(teacher, f"{name}.{source}", sites, units)
            try:
                target.load_state_dict(weights)
            except RuntimeError as error:
                raise StudentError(
                    f"layer {source} of the {type(teacher).__name__} does not fit as layer {index} of the student "
                    f"({str(error).splitlines()[-1].strip()}); name other layers in layer_map"
                ) from error


def _layer_weights(teacher, origin, sites, units):
    """Weights of one teacher layer without its activation's, narrowed to the units that are kept."""
    state = teacher.base_model.get_submodule(origin).state_dict(prefix=f"{origin}.")
    for site in sites:
        if site.activation.startswith(f"{origin}."):
            state = {name: value for name, value in state.items() if not name.startswith(f"{site.activation}.")}
            if units is not None:
                _narrow(state, site, units[site.activation], teacher.base_model.get_submodule(site.up))
    return {name.removeprefix(f"{origin}."): value for name, value in state.items()}


def _narrow(state, site, kept, up):
    """Keep some units of one FFN, in place. Args: up: its first map; GPT-2's hold weights the other way round."""
    inner, outer = (1, 0) if isinstance(up, Conv1D) else (0, 1)
    state[f"{site.up}.weight"] = state[f"{site.up}.weight"].index_select(inner, kept)
    state[f"{site.up}.bias"] = state[f"{site.up}.bias"][kept]
    state[f"{site.down}.weight"] = state[f"{site.down}.weight"].index_select(outer, kept)
