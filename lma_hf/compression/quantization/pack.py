"""Quantized weights packed into bytes: `quantize_`, and what it saved."""

import copy
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lma_hf.compression.quantization.calibrated import calibrated_codes
from lma_hf.compression.quantization.fake_quantize import prepared_steps
from lma_hf.compression.quantization.product import product_codes, scheme_for
from lma_hf.compression.quantization.targets import left_alone, left_alone_text, quantizable_modules
from lma_hf.errors import SurgeryError
from lma_hf.modeling.modeling_lma import connect
from lma_hf.modeling.packed_lma import packed_like
from lma_hf.modeling.quantizer_lma import mark_packed, packed_modules
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme, quantize
from lma_hf.surgery.swap import own_config

MB = 1e6
FITS = {ScalarScheme: quantize, ProductScheme: product_codes}  # (weight, scheme) -> what a packed layer is filled with


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized.

    Attributes:
        quantized: fqn -> scheme. size_mb, size_mb_before: of all parameters and buffers that are saved, in MB (1e6
            bytes). sqnr_db: 10 log10 of the weights' mean square over that of the rounding error, over all of them.
        left_alone: fqn -> class name of linear layers and embeddings that compute in a way of their own.
    """

    quantized: dict
    size_mb: float
    size_mb_before: float
    sqnr_db: float
    left_alone: dict

    def __str__(self):
        schemes = ", ".join(map(str, dict.fromkeys(self.quantized.values())))
        done = (
            f"quantized {len(self.quantized)} modules ({schemes}): {self.size_mb_before:.2f} MB -> {self.size_mb:.2f} "
            f"MB, SQNR {self.sqnr_db:.1f} dB"
        )
        return "; ".join(filter(None, [done, left_alone_text(self.left_alone)]))


def quantize_(model, scheme=None, *, modules_to_not_convert=None, batches=None):
    """Replace linear layers and embeddings by packed ones, in place; for inference, `model.dequantize()` undoes it.

    Args:
        model: a transformers model.
        scheme: a `ScalarScheme` or `ProductScheme`, or {nn.Linear: one, nn.Embedding: another}; None: those that the
            model was trained with (`prepare_quantization_`, `prepare_codebooks_`).
        modules_to_not_convert: see `quantizable_modules`, which says what else is raised.
        batches: list of model inputs (dicts of tensors) that linear layers are rounded for; see `calibrated_codes`.
            None: every weight goes to its nearest level.
    Returns: QuantizationReport. Raises: SurgeryError if a scheme is missing or given twice, or a weight is not finite.
    """
    prepared = prepared_steps(model)
    if bool(prepared) == (scheme is not None):
        wrong = "was prepared with schemes of its own; drop scheme" if prepared else "was not prepared; name a scheme"
        raise SurgeryError(f"scheme is {scheme!r}, but {type(model).__name__} {wrong}")
    before = _size_mb(model)
    packed = _pack_prepared(model) if prepared else _pack(model, scheme, modules_to_not_convert, batches)
    sqnr_db = _sqnr_db(model, packed)
    own_config(model)
    for fqn, module in packed.items():
        model.set_submodule(fqn, module)
    schemes = _mark(model)
    return QuantizationReport(schemes, _size_mb(model), before, sqnr_db, left_alone(model))


def quantized_copy(model):
    """The packed model that a prepared one is to be saved as; the model itself stays as it is."""
    packed = _pack_prepared(model)
    # as if these had been copied already
    twin = copy.deepcopy(model, {id(model.get_submodule(fqn)): module for fqn, module in packed.items()})
    _mark(twin)
    return twin


def _mark(model):
    """Say in the model what is packed. Returns: fqn -> scheme."""
    schemes = {fqn: module.scheme for fqn, module in packed_modules(model).items()}
    mark_packed(model, schemes)
    connect(model)
    return schemes


def _pack_prepared(model):
    """Fqn -> the packed module that is to stand there."""
    steps = prepared_steps(model)
    return {
        fqn: _filled(fqn, model.get_submodule(fqn), step.scheme, lambda step=step, master=master: step.parts(master))
        for fqn, (step, master) in steps.items()
    }


def _pack(model, scheme, modules_to_not_convert, batches):
    """Fqn -> the packed module that is to stand there."""
    modules = quantizable_modules(model, modules_to_not_convert)
    schemes = {fqn: scheme_for(module, scheme) for fqn, module in modules.items()}
    linear = {fqn: module for fqn, module in modules.items() if batches is not None and isinstance(module, nn.Linear)}
    fits = {fqn: partial(FITS[type(schemes[fqn])], module.weight, schemes[fqn]) for fqn, module in modules.items()}
    # these first: what is not finite in an embedding would be in the inputs of all layers
    packed = {fqn: _filled(fqn, modules[fqn], schemes[fqn], fits[fqn]) for fqn in modules if fqn not in linear}
    if linear:
        codes = calibrated_codes(model, linear, schemes, batches)
        packed |= {fqn: _filled(fqn, linear[fqn], schemes[fqn], partial(codes.get, fqn)) for fqn in linear}
    return {fqn: packed[fqn] for fqn in modules}


@torch.no_grad()
def _filled(fqn, module, scheme, fit):
    """The packed layer of a module. Args: fit: () -> what it is filled with."""
    weight = module.weight
    packed = packed_like(module, scheme).to(weight.device, weight.dtype).train(module.training)
    try:
        packed.fill_(*fit())
    except ValueError as error:
        raise SurgeryError(f"{fqn} has {error}") from error
    if getattr(module, "bias", None) is not None:
        packed.bias.copy_(module.bias)
    return packed


@torch.no_grad()
def _sqnr_db(model, packed):
    power, noise = 0.0, 0.0
    masters = {fqn: master for fqn, (_, master) in prepared_steps(model).items()}
    for fqn, module in packed.items():
        weight, rows = masters.get(fqn, model.get_submodule(fqn).weight).double(), module.rows()
        if weight.shape == rows.shape:  # of codebooks that were trained there is no other weight
            power += weight.square().sum().item()
            noise += (weight - rows).square().sum().item()
    return 10 * math.log10(power / noise) if power and noise else math.inf


def _size_mb(model):
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / MB
