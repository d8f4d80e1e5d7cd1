"""Training with quantized weights: what is rounded when, gradients, and what it leaves at the end."""

import copy

import pytest
import torch
from helpers import padded_batch, tiny_model
from torch import nn

from lma_hf.compression.quantization.fake_quantize import (
    NOISE_BLOCK,
    FakeQuantize,
    prepare_quantization_,
    prepared_steps,
)
from lma_hf.compression.quantization.pack import quantized_copy
from lma_hf.errors import SurgeryError
from lma_hf.modeling.schemes_lma import ScalarScheme, rounded
from lma_hf.training.used_embeddings import UsedEmbeddings

SCHEME = ScalarScheme(4, 8)


def prepared(noise_rate, **options):
    model = tiny_model()
    prepare_quantization_(model, SCHEME, noise_rate=noise_rate, **options)
    return model


def loss_and_gradients(model, batch):
    model.zero_grad()
    model(**batch).logits.square().sum().backward()
    return {name.replace("parametrizations.weight.original", "weight"): p.grad for name, p in model.named_parameters()}


def with_rounded_weights(model):
    """A plain model whose quantized modules hold the rounded weights."""
    plain = copy.deepcopy(tiny_model())
    with torch.no_grad():
        for fqn in prepared_steps(model):
            module = plain.get_submodule(fqn)
            module.weight.copy_(rounded(module.weight, SCHEME))
    return plain


@pytest.mark.parametrize("training", [True, False])
def test_full_noise_trains_the_weights_that_will_be_saved(training):
    model, batch = prepared(1.0).train(training), padded_batch(tiny_model(), (5, 9))
    plain = with_rounded_weights(model).train(training)
    expected, found = loss_and_gradients(plain, batch), loss_and_gradients(model, batch)
    # straight through: the master's gradient is that of the rounded weight
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(plain(**batch).logits, model(**batch).logits)
    assert torch.equal(quantized_copy(model)(**batch).logits, model.eval()(**batch).logits)


def test_no_noise_trains_as_if_there_were_no_quantization():
    model, plain = prepared(0.0).train(), tiny_model().train()
    batch = padded_batch(plain, (5, 9))
    expected, found = loss_and_gradients(plain, batch), loss_and_gradients(model, batch)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(plain(**batch).logits, model(**batch).logits)
    # what is evaluated is what will be saved
    assert torch.equal(with_rounded_weights(model).eval()(**batch).logits, model.eval()(**batch).logits)


def test_noise_is_gone_in_eval_mode():
    model, batch = prepared(0.5), padded_batch(tiny_model(), (5, 9))
    first, second = (model.train()(**batch).logits for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(**batch).logits for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, quantized_copy(model)(**batch).logits)


@pytest.mark.parametrize("length", [64, 61])
def test_a_part_of_the_blocks_is_rounded_and_the_rest_left_as_it_is(length):
    torch.manual_seed(0)
    step, weight = FakeQuantize(SCHEME, 0.3), torch.randn(2000, length)
    values, levels = step(weight), rounded(weight, SCHEME)
    as_rounded, as_it_was = values == levels, values == weight
    assert (as_rounded | as_it_was).all()
    blocks = [block.all(dim=1) for block in as_rounded.split(NOISE_BLOCK, dim=1)]
    untouched = [block.all(dim=1) for block in as_it_was.split(NOISE_BLOCK, dim=1)]
    assert all((one | other).all() for one, other in zip(blocks, untouched, strict=True))
    assert torch.stack(blocks).float().mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("noise_rate", [0.0, 1.0])
def test_without_chance_no_random_number_is_drawn(noise_rate):
    torch.manual_seed(3)
    model = prepared(noise_rate).train()
    before = torch.get_rng_state()
    model(**padded_batch(model, (5, 9)))
    assert torch.equal(before, torch.get_rng_state())


def test_words_trained_as_a_small_table_are_rounded_too():
    batch = padded_batch(tiny_model(), (5, 9))
    whole, small = prepared(1.0).train(), prepared(1.0).train()
    assert UsedEmbeddings.suit(small)
    embeddings = UsedEmbeddings(small, batch["input_ids"].unique())
    expected = loss_and_gradients(whole, batch)
    with embeddings:
        found = loss_and_gradients(small, batch)
        table = expected["bert.embeddings.word_embeddings.weight"]
        assert torch.equal(embeddings.weight.grad, table[embeddings.ids])
        assert all(torch.equal(expected[name], grad) for name, grad in found.items() if grad is not None)


def test_gradient_checkpointing_repeats_the_same_noise():
    found = []
    for checkpointing in (False, True):
        model = prepared(0.5).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        found.append(loss_and_gradients(model, padded_batch(model, (5, 9))))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_head_stays_as_it_is_unless_told_otherwise():
    assert not any(fqn.startswith("classifier") for fqn in prepared_steps(prepared(1.0)))
    assert "classifier" in prepared_steps(prepared(1.0, modules_to_not_convert=[]))
    names = prepared_steps(prepared(1.0, modules_to_not_convert=["embeddings", "layer.0", "classifier"]))
    assert names
    assert all("layer.1" in fqn or "layer.2" in fqn or "pooler" in fqn for fqn in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_rate": 1.5}, "noise_rate is 1.5, allowed are numbers from 0 to 1"),
        ({"modules_to_not_convert": ["pooller"]}, "names 'pooller', but there are bert.embeddings.word_embeddings"),
        ({"modules_to_not_convert": ["bert", "classifier"]}, "nothing to quantize in BertForSequenceClassification"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_changed(options, message):
    model = tiny_model()
    with pytest.raises(SurgeryError, match=message):
        prepare_quantization_(model, SCHEME, **options)
    assert prepared_steps(model) == {}


def test_a_model_is_prepared_once():
    model = prepared(1.0)
    with pytest.raises(SurgeryError, match="prepared for quantization already"):
        prepare_quantization_(model, SCHEME)


def test_a_shared_weight_is_refused():
    with pytest.raises(SurgeryError, match=r"share a weight.*name both in modules_to_not_convert"):
        prepare_quantization_(tiny_model(head="masked_lm"), SCHEME)
    rest = prepare_quantization_(
        tiny_model(head="masked_lm"), SCHEME, modules_to_not_convert=["word_embeddings", "decoder"]
    )
    assert rest


def test_masters_are_the_weights_of_before():
    model = prepared(1.0)
    for fqn, (_, master) in prepared_steps(model).items():
        assert torch.equal(master, tiny_model().get_submodule(fqn).weight)
    assert isinstance(model.get_submodule("bert.embeddings.word_embeddings"), nn.Embedding)
