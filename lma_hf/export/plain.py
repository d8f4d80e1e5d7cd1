"""Modules written in operators that every runtime has, in the form in which ONNX Runtime is fastest."""

import torch
from torch import nn

from lma_hf.modeling.activation_lma import FoldedLMA

# pieces that are no further apart than this at a knot meet there
MEETING = 1e-5


def folded_of(module):
    """What an `LMA` or `FoldedLMA` computes in evaluation, as a `FoldedLMA`."""
    return module if isinstance(module, FoldedLMA) else FoldedLMA.of(module)


def constants_of(folded):
    """slope, intercept, lower and step of a `FoldedLMA`, in float32 on the CPU."""
    tables = (folded.slope, folded.intercept, folded.lower, folded.step)
    return tuple(table.detach().float().cpu() for table in tables)


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
        return cls(*constants_of(folded_of(module)))

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


class ExportableLayerNorm(nn.Module):
    """`nn.LayerNorm` as plain operators.

    ONNX Runtime's own LayerNormalization, which a graph that has one gets, goes through a row element by element: on
    128 x 384 elements 0.25 ms, plain operators 0.08 (docs/export.md).
    """

    def __init__(self, module):
        super().__init__()
        self.dims = tuple(range(-len(module.normalized_shape), 0))
        self.weight, self.bias, self.eps = module.weight, module.bias, module.eps

    def forward(self, x):
        centred = x - x.mean(self.dims, keepdim=True)
        variance = (centred * centred).mean(self.dims, keepdim=True)
        # 1 / sqrt(variance + eps), but onnxscript drops the addition of a number below 1e-8
        y = centred * (torch.rsqrt(variance / self.eps + 1) * self.eps**-0.5)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias
