"""A model whose linear layers multiply 8-bit integers in PyTorch: torchao's dynamic quantization, compiled."""

import torch

from lma_hf.errors import MissingDependencyError

MAX_GRAPHS = 256  # compiled for one class of models, all of which share Dynamo's cache; it would give up after 8


def check_torchao():
    """Raises: MissingDependencyError if torchao is not installed."""
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "int8 in PyTorch needs torchao, which is not installed; run pip install 'lma_hf[torchao]'"
        ) from error


def compile_int8(model):
    """For inference: weights in int8 with a scale for each output, inputs in int8 with a scale for each token.

    The first batch of one text and the first of several take half a minute each to compile. Without compilation
    torchao's layers are no faster than float32 on a CPU.

    Args: model: in float32, on the CPU; not packed. It is changed in place.
    Returns: a callable that takes the model's inputs. Raises: MissingDependencyError without torchao.
    """
    check_torchao()
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model.eval(), Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(model, dynamic=True)

    def run(**batch):
        # freezing lays the weights out for the processor's integer instructions; inference mode would undo that
        freezing, limit = inductor.patch(freezing=True), dynamo.patch(recompile_limit=MAX_GRAPHS)
        with torch.inference_mode(False), torch.no_grad(), freezing, limit:
            return compiled(**batch)

    return run
