"""A `torch.export` program as an ONNX graph."""

import contextlib
import logging
import warnings

import torch
from torch import nn

from lma_hf.errors import ExportError, MissingDependencyError
from lma_hf.export.plain import ExportableLayerNorm
from lma_hf.export.program import dynamic_shapes, exportable, one_line

OPSET = 18
STANDARD_DOMAINS = ("", "ai.onnx")


def check_onnx():
    """Raises: MissingDependencyError if a package that ONNX export needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX export needs {error.name}, which is not installed; run pip install 'lma_hf[onnx]'"
        ) from error


def exportable_to_onnx(model, replacements=None, attention="eager"):
    """`exportable`, in the form in which ONNX Runtime is fastest: docs/export.md has the times.

    Args: attention: the formula, which becomes fewer nodes than PyTorch's fused operator, or `ONNX_ATTENTION`; models
        that have attention of their own keep it.
    """
    copied = exportable(model, {nn.LayerNorm: ExportableLayerNorm, **(replacements or {})})
    with _quiet("transformers.modeling_utils"):
        copied.set_attn_implementation(attention)
    return copied


def save_onnx(program, names, path, max_length=None, opset=OPSET):
    """Write a program as ONNX, with inputs of shape (batch, sequence) and the output `logits`.

    Above 2 GB, the limit of the format, the weights lie in a second file beside it.

    Args: program, names, max_length: as from `to_program`.
    Raises: ExportError if an operator has no counterpart in ONNX.
    """
    try:
        with _quiet("torch.onnx"):
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=dynamic_shapes(names, max_length),
            )
            onnx_program.save(str(path))
    except Exception as error:  # the exporter has no base class for what it cannot translate
        raise ExportError(f"the program cannot be written as ONNX: {one_line(error)}") from error


def check_graph(path):
    """Raises: ExportError if a graph needs anything beyond the standard operators of opset 18 or later."""
    model = _load(path)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in STANDARD_DOMAINS})
    if foreign or max(opsets.get(domain, 0) for domain in STANDARD_DOMAINS) < OPSET:
        raise ExportError(
            f"{path.name} has the operators {', '.join(foreign) or 'of ONNX alone'} and the opsets {opsets}, allowed "
            f"are standard operators of opset {OPSET} and later"
        )


def opset_of(path):
    """The version of the standard operators that a graph has."""
    return max(entry.version for entry in _load(path).opset_import if entry.domain in STANDARD_DOMAINS)


def operators_of(path):
    """The names of a graph's operators, as a set."""
    return {node.op_type for node in _load(path).graph.node}


def _load(path):
    import onnx

    return onnx.load(str(path), load_external_data=False)


@contextlib.contextmanager
def _quiet(name):
    """Without a logger's remarks: on packages that are not needed, deprecated calls, attention that stays as it is."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
