"""A model as a `torch.export` program: on the CPU, in float32, of PyTorch's own operators alone."""

import copy
import inspect
import warnings

import torch
from torch import nn
from torch.export import Dim

from lma_hf.errors import ExportError
from lma_hf.modeling.activation_lma import LMA, FoldedLMA

# tokens a row that a model without absolute positions is traced for at most
UNLIMITED = 2**20
# pieces that are no further apart than this at a knot meet there
MEETING = 1e-5


class ExportableLMA(nn.Module):
    """LMA as constants and plain operators: sub, mul, clamp, cast, gather, mul, add.

    The segment is that of `lma_hf.lma`, to the last bit: the same operations in the same order. The tables are laid
    out for gather, which becomes GatherElements: on 512 x 1536 elements ONNX Runtime took 7 ms for the whole
    activation, and 16 to 30 ms with an index into a flat table (Gather, GatherND).

    Args: slope, intercept, lower, step: as `lma_hf.lma` takes them.
    """

    def __init__(self, slope, intercept, lower, step):
        super().__init__()
        self.last_segment = slope.shape[-1] - 1
        self.per_channel = slope.dim() == 2
        for name, table in {"slope": slope, "intercept": intercept}.items():
            self.register_buffer(name, table.t().contiguous() if self.per_channel else table[None])
        self.register_buffer("lower", lower)
        self.register_buffer("segments_per_unit", step.reciprocal())

    @classmethod
    @torch.no_grad()
    def of(cls, module):
        """What an `LMA` or `FoldedLMA` computes in evaluation."""
        folded = module if isinstance(module, FoldedLMA) else FoldedLMA.of(module)
        tables = (folded.slope, folded.intercept, folded.lower, folded.step)
        return cls(*(table.detach().float().cpu() for table in tables))

    def forward(self, x):
        rows = x.flatten(0, -2)
        index = ((rows - self.lower) * self.segments_per_unit).clamp(0, self.last_segment).long()
        y = self._look_up(self.slope, index) * rows + self._look_up(self.intercept, index)
        return y.view(x.shape)

    def distance_to_jump(self, x):
        """How far every element of x is from its nearest knot; infinite where the pieces meet there."""
        rows, along = x.flatten(0, -2), 0 if self.per_channel else 1
        index = torch.arange(1, self.last_segment + 1)
        knot = self.lower + (index[:, None] if self.per_channel else index[None]) / self.segments_per_unit
        jumps = (self.slope.diff(dim=along) * knot + self.intercept.diff(dim=along)).abs() > MEETING
        nearest = ((rows - self.lower) * self.segments_per_unit).round().clamp(1, self.last_segment).long() - 1
        distance = (rows - self._look_up(knot, nearest)).abs()
        return distance.masked_fill(~self._look_up(jumps, nearest), torch.inf).view(x.shape)

    def _look_up(self, table, index):
        if self.per_channel:
            return table.gather(0, index)
        return table.expand(index.shape[0], -1).gather(1, index)


class _Logits(nn.Module):
    """The model as a function from token ids to logits, with names that every runtime can use."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def exportable(model):
    """A copy of the model as it is exported: in eval mode, on the CPU, in float32, LMA as `ExportableLMA`."""
    copied = copy.deepcopy(model).to("cpu", torch.float32)
    for fqn, module in list(copied.named_modules()):
        if isinstance(module, (LMA, FoldedLMA)):
            copied.set_submodule(fqn, ExportableLMA.of(module))
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
        model: any model with a sequence of tokens as input and `logits` as output; it is not changed.
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
            return torch.export.export(_Logits(exportable(model)), (), example, dynamic_shapes=shapes)
    except Exception as error:  # whatever a model does that cannot be traced
        raise ExportError(f"{type(model).__name__} cannot be exported: {one_line(error)}") from error


def one_line(error):
    """Type and message of a foreign error, on one line of readable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"
