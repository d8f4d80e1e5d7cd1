"""An ONNX file in int8, through ONNX Runtime's dynamic quantizer."""

import contextlib
import logging

from lma_hf.export.table import multiply_codes


def quantize_onnx(source, target):
    """Write an int8 version of an ONNX file: weights and embeddings in int8, activations quantized as they come.

    Settings chosen by measurement, see docs/export.md: one scale for each output of a MatMul (one for all of them cost
    up to 0.8 points); weights of 7 bits, which cost nothing then and cannot overflow on CPUs without VNNI; embeddings
    (Gather) too, since they are two thirds of a small BERT. Not Attention, which it takes for its own operator of that
    name. What follows a `TableLMA` multiplies its codes.

    Args: source, target: paths.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(str(target))
    multiply_codes(model.graph)
    onnx.save(model, str(target))


@contextlib.contextmanager
def _quiet():
    # the quantizer advises a preparation that the exporter has done, on the root logger
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
