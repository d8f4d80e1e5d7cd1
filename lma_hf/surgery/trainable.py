"""Which parameters train: all, or the activations alone or with a few others, while the rest is frozen."""

from lma_hf.errors import SurgeryError
from lma_hf.modeling.modeling_lma import learnable_activations
from lma_hf.surgery.targets import base_prefix

TRAIN = ("all", "activations", "activations+bias", "activations+head")


def trained_parameters(model, train):
    """Names of the parameters that `train` stands for.

    Args:
        train: "all"; "activations", those of every learnable activation; "activations+bias", also every bias (BitFit,
            Ben Zaken et al. 2022, arXiv 2106.10199); "activations+head", also what is outside the base model.
    Raises: SurgeryError if `train` is none of these, or the model holds no learnable activation.
    """
    if train not in TRAIN:
        raise SurgeryError(f"train is {train!r}, allowed are {', '.join(TRAIN)}")
    names = [name for name, _ in model.named_parameters()]
    if train == "all":
        return names
    inside = tuple(f"{fqn}." for fqn in learnable_activations(model))
    if not inside:
        raise SurgeryError(
            f"train is {train!r}, but {type(model).__name__} holds no learnable activation; swap its activations "
            "first (lma, prelu, swish or aplu)"
        )
    prefix = base_prefix(model)
    also = {
        "activations": lambda name: False,
        "activations+bias": lambda name: name.endswith("bias"),
        "activations+head": lambda name: not name.startswith(prefix),
    }[train]
    return [name for name in names if name.startswith(inside) or also(name)]


def train_only_(model, train):
    """Freeze every parameter but those that `train` stands for; what is frozen already stays so.

    Args: train: see `trained_parameters`, which says what is raised.
    Returns: how many numbers train.
    """
    names = set(trained_parameters(model, train))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    return count_trained(model)


def count_trained(model):
    """How many numbers of a model train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
