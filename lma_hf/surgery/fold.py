"""Folding: running statistics become constants, for a model that is only used for inference."""

from transformers import PreTrainedModel

from lma_hf.errors import SurgeryError
from lma_hf.modeling.activation_lma import LMA, FoldedLMA
from lma_hf.modeling.modeling_lma import place
from lma_hf.modeling.swap_record_lma import read_swap, record_swap
from lma_hf.surgery.swap import check_not_wrapped, own_config


def fold_(model):
    """Turn every LMA of `model` into its constants slope, intercept, lower and step, in place.

    What the model computes in evaluation stays the same, bit by bit; it can no longer be calibrated, and training
    leaves the activations as they are. `restore_activations_` still works.

    Returns: the number of LMAs that were folded.
    Raises: SurgeryError if there is none, or the model is wrapped.
    """
    check_not_wrapped(model)
    modules = {fqn: module for fqn, module in model.named_modules() if isinstance(module, LMA)}
    if not modules:
        raise SurgeryError(f"{type(model).__name__} holds no LMA to fold; call swap_activations_ first")
    for fqn, module in modules.items():
        folded = FoldedLMA.of(module)
        place(model, fqn, folded)
        folded.__dict__.pop("replaced")
        folded.__dict__.update({key: module.__dict__[key] for key in ("replaced",) if key in module.__dict__})
    if isinstance(model, PreTrainedModel) and (swap := read_swap(model.config)) is not None:
        record_swap(own_config(model), swap._replace(folded=True))
    return len(modules)
