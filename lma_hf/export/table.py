"""LMA between two integer products, as a look-up in a table of 256 entries."""

import torch
from torch import nn
from torch.onnx.ops import symbolic

from lma_hf.export.plain import ExportableLMA, constants_of, folded_of
from lma_hf.modeling.reference_lma import lma
from lma_hf.modeling.schemes_lma import ScalarScheme, levels_of, nearest_codes

CODES = ScalarScheme(bits=8)
# how far the codes reach on either side of the mean, in deviations
REACH_SIGMAS = 9.0


class TableLMA(nn.Module):
    """LMA on 8-bit codes of its input, as operators of ONNX: it can be exported, and not run in PyTorch.

    LMA knows where its inputs lie, so that their levels need no calibration data: 256, evenly spaced over REACH_SIGMAS
    deviations to each side of the mean, and over all segments. The table has the code of the output for each, with
    LMA's parameters in float.

    Args: slope, intercept, lower, step: as `lma_hf.lma` takes them, shared by all channels. range_sigmas: how far the
        segments reach, in deviations.
    """

    def __init__(self, slope, intercept, lower, step, range_sigmas):
        super().__init__()
        width = step * slope.shape[-1]
        beyond = max(0.0, REACH_SIGMAS / range_sigmas - 1) / 2 * width
        self._add_levels("input", torch.stack([lower - beyond, lower + width + beyond]))
        inputs = (torch.arange(CODES.levels) - self.input_zero_point.float()) * self.input_scale
        outputs = lma(inputs, slope, intercept, lower, step)
        self._add_levels("output", outputs)
        codes = nearest_codes(outputs, self.output_scale, self.output_zero_point.float(), CODES)
        self.register_buffer("table", codes.to(torch.uint8)[None])

    @classmethod
    @torch.no_grad()
    def of(cls, module):
        """What an `LMA` or `FoldedLMA` computes in evaluation; per channel, which has no table, an `ExportableLMA`."""
        folded = folded_of(module)
        constants = constants_of(folded)
        return cls(*constants, folded.range_sigmas) if constants[0].dim() == 1 else ExportableLMA(*constants)

    def _add_levels(self, name, values):
        scale, zero_point = levels_of(values, CODES)
        self.register_buffer(f"{name}_scale", scale[0])
        self.register_buffer(f"{name}_zero_point", zero_point[0].to(torch.uint8))

    def forward(self, x):
        rows = x.flatten(0, -2)
        codes = _operator("QuantizeLinear", rows, self.input_scale, self.input_zero_point, dtype=torch.uint8)
        # int32 in place of gather's int64, which takes longer to write and to read
        table = self.table.expand(rows.shape[0], -1)
        found = _operator("GatherElements", table, codes.int(), dtype=torch.uint8, shape=rows.shape, axis=1)
        found = found.view(x.shape)
        return _operator("DequantizeLinear", found, self.output_scale, self.output_zero_point, dtype=torch.float32)


def _operator(name, x, *others, dtype, shape=None, **attributes):
    """An operator of ONNX by its name. Args: shape: of what it returns; None: that of x."""
    shape = x.shape if shape is None else shape
    return symbolic(f"::{name}", (x, *others), attributes or None, dtype=dtype, shape=shape)


def multiply_codes(graph):
    """Let integer products take the codes of a `TableLMA`, where they would take codes made anew of its output.

    Args: graph: `onnx.GraphProto` that was quantized dynamically; it is changed in place.
    """
    makers = {output: node for node in graph.node for output in node.output}
    for node in [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]:
        source = makers.get(node.input[0])
        if source is not None and source.op_type == "DequantizeLinear":
            graph.node.remove(node)
            _rename_inputs(graph, dict(zip(node.output, source.input, strict=True)))
            if not any(output in reader.input for reader in graph.node for output in source.output):
                graph.node.remove(source)


def _rename_inputs(graph, names):
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
