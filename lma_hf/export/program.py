"""A model as a `torch.export` program: on the CPU, in float32, of PyTorch's own operators alone."""

import copy
import inspect
import warnings

import torch
from torch import nn
from torch.export import Dim

from lma_hf.errors import ExportError
from lma_hf.export.plain import ExportableLMA
from lma_hf.modeling.activation_lma import LMA, FoldedLMA

# tokens a row that a model without absolute positions is traced for at most
UNLIMITED = 2**20


class _Logits(nn.Module):
    """The model as a function from token ids to logits, with names that every runtime can use."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def exportable(model, replacements=None):
    """A copy of the model as it is exported: in eval mode, on the CPU, in float32, LMA as `ExportableLMA`.

    Args: replacements: type of module -> what makes the module that takes its place, over and above that.
    """
    copied = copy.deepcopy(model).to("cpu", torch.float32)
    makers = {LMA: ExportableLMA.of, FoldedLMA: ExportableLMA.of, **(replacements or {})}
    for fqn, module in list(copied.named_modules()):
        if type(module) in makers:
            copied.set_submodule(fqn, makers[type(module)](module))
    return copied.eval()


def input_names(model, tokenizer):
    """The inputs of the exported model, in order. Raises: ExportError if it takes others than a text encoder's."""
    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    known = list(inspect.signature(_Logits.forward).parameters)[1:]
    if not set(known[:2]) <= set(names) <= set(known):
        raise ExportError(
            f"{type(model).__name__} takes the inputs {', '.join(names) or 'none'} from its tokenizer, allowed are "
            f"{', '.join(known[:2])} and possibly {known[2]}; only text models can be exported"
        )
    return [name for name in known if name in names]


def dynamic_shapes(names, max_length):
    """Shapes of the inputs for torch.export: any number of rows, up to max_length tokens (None: no limit)."""
    batch, sequence = Dim("batch"), Dim("sequence", max=max_length or UNLIMITED)
    return {name: {0: batch, 1: sequence} for name in names}


@torch.no_grad()
def to_program(model, names, max_length=None):
    """Trace a model for any batch size and length.

    Args:
        model: from `exportable`.
        names: from `input_names`. max_length: the model's positions, None without a limit.
    Returns: `torch.export.ExportedProgram` from the named inputs, int64 of shape (batch, sequence), to the logits.
    Raises: ExportError if torch.export cannot trace the model.
    """
    # sizes of 0 and 1 would be taken for constants
    example = {name: torch.ones(2, 3, dtype=torch.long) for name in names}
    shapes = dynamic_shapes(names, max_length)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(_Logits(model), (), example, dynamic_shapes=shapes)
    except Exception as error:  # whatever a model does that cannot be traced
        raise ExportError(f"{type(model).__name__} cannot be exported: {one_line(error)}") from error


def one_line(error):
    """Type and message of a foreign error, on one line of readable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"
