"""Codebooks that train: what they compute, their gradients, and what is saved."""

import copy

import pytest
import torch
from helpers import padded_batch, tiny_model
from torch.nn.utils import parametrize

from lma_hf.compression.quantization.codebooks import prepare_codebooks_
from lma_hf.compression.quantization.fake_quantize import prepare_quantization_, prepared_steps
from lma_hf.compression.quantization.pack import quantize_, quantized_copy
from lma_hf.errors import SurgeryError
from lma_hf.modeling.packed_lma import PackedEmbedding
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme

SCHEME = ProductScheme(4, 16)


@pytest.fixture
def model():
    model = tiny_model()
    prepare_codebooks_(model, SCHEME)
    return model


def test_it_starts_where_rounding_alone_ends(model):
    batch, packed = padded_batch(model, (5, 9)), tiny_model()
    quantize_(packed, SCHEME)
    assert torch.equal(model(**batch).logits, packed(**batch).logits)


def test_codebooks_train_and_what_is_saved_is_what_was_evaluated(model):
    batch = padded_batch(model, (5, 9, 12))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model(**batch).logits - 1).square().mean().backward()
        optimizer.step()
    assert (model(**batch).logits - 1).square().mean() < (before(**batch).logits - 1).square().mean()
    packed = quantized_copy(model)
    assert torch.equal(packed(**batch).logits, model(**batch).logits)
    assert packed_modules(packed).keys() == prepared_steps(model).keys() | packed_modules(model).keys()
    for fqn, module in packed_modules(packed).items():
        start = before.get_submodule(fqn)
        trained = not isinstance(module, PackedEmbedding)
        codes = start.parametrizations.weight[0].codes if trained else start.packed
        assert torch.equal(module.packed, codes)


def test_a_centroid_has_the_gradients_of_its_blocks(model):
    fqn, batch = "bert.encoder.layer.1.output.dense", padded_batch(model, (5, 9))
    model(**batch).logits.square().sum().backward()
    step, codebook = prepared_steps(model)[fqn]
    plain = quantized_copy(model).dequantize()
    plain(**batch).logits.square().sum().backward()
    blocks = SCHEME.blocks(plain.get_submodule(fqn).weight.grad)
    expected = torch.zeros_like(codebook).index_add(0, step.codes.long().flatten(), blocks.flatten(0, 1))
    torch.testing.assert_close(codebook.grad, expected)


def test_quantize_takes_the_codebooks_over(model):
    batch = padded_batch(model, (5, 9))
    expected = model(**batch).logits
    report = quantize_(model)
    assert torch.equal(model(**batch).logits, expected)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert report.quantized.keys() == packed_modules(model).keys()


def test_it_is_prepared_once_and_finite(model):
    for prepare, scheme in ((prepare_codebooks_, SCHEME), (prepare_quantization_, ScalarScheme())):
        with pytest.raises(SurgeryError, match="already"):
            prepare(model, scheme)
    broken = tiny_model()
    broken.get_submodule("bert.pooler.dense").weight.data[0, 0] = float("inf")
    with pytest.raises(SurgeryError, match=r"bert\.pooler\.dense has weights that are not finite"):
        prepare_codebooks_(broken, SCHEME)
