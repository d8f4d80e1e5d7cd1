"""Codebooks that train: what they compute, their gradients, and what is saved."""

import copy

import pytest
import torch
from helpers import padded_batch, tiny_model
from torch.nn.utils import parametrize

from lma_hf.compression.quantization.codebooks import prepare_codebooks_
from lma_hf.compression.quantization.fake_quantize import prepare_quantization_, prepared_steps
from lma_hf.compression.quantization.pack import quantize_, quantized_copy
from lma_hf.compression.quantization.product_noise import ZeroBlocks, prepare_product_noise_, state_without_noise
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


@pytest.mark.parametrize("kept", [None, ["embeddings", "classifier"]])
def test_it_is_prepared_once(kept):
    model = tiny_model()
    prepare_codebooks_(model, SCHEME, modules_to_not_convert=kept)
    for prepare, scheme in ((prepare_codebooks_, SCHEME), (prepare_quantization_, ScalarScheme())):
        with pytest.raises(SurgeryError, match="prepared for quantization already"):
            prepare(model, scheme, modules_to_not_convert=kept)


@pytest.mark.parametrize("bad", [float("inf"), 1e9])
def test_what_a_codebook_cannot_hold_is_named_and_nothing_is_changed(bad):
    broken = tiny_model()
    broken.get_submodule("bert.pooler.dense").weight.data[0, 0] = bad
    for change in (prepare_codebooks_, quantize_):
        with pytest.raises(SurgeryError, match=r"bert\.pooler\.dense has weights that are not finite, or too large"):
            change(broken, SCHEME)
    assert (prepared_steps(broken), packed_modules(broken)) == ({}, {})


def test_noise_of_product_quantization_is_zeros_in_training_only():
    torch.manual_seed(0)
    step, weight = ZeroBlocks(0.2), torch.randn(3000, 20, requires_grad=True)
    values = step(weight)
    zero = values == 0
    torch.testing.assert_close(values[~zero], weight[~zero] / 0.8)
    assert zero.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(zero[:, :8].all(dim=1), zero[:, 0])
    values.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert step.eval()(weight) is weight


def test_a_model_with_such_noise_is_saved_as_it_is():
    model, batch = tiny_model(), padded_batch(tiny_model(), (5, 9))
    expected = model(**batch).logits
    prepare_product_noise_(model, 0.3)
    assert prepared_steps(model) == {}
    assert not torch.equal(model.train()(**batch).logits, expected)
    assert torch.equal(model.eval()(**batch).logits, expected)
    found, plain = state_without_noise(model), tiny_model().state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    with pytest.raises(SurgeryError, match="0 to below 1"):
        prepare_product_noise_(tiny_model(), 1.0)
