"""A sentence's result must not depend on how far its batch is padded (LMA.md, defect 4)."""

import copy

import pytest
import torch
from modeling.tiny_models import ARCHITECTURES, FFN_WIDTH, lma_modules, sentences, statistics, tiny_model
from transformers import AutoModelForMaskedLM

import lma_hf

LENGTHS = (32, 5, 17, 1)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
BATCH = lma_hf.LMAConfig()
RUNNING = lma_hf.LMAConfig(statistics="running", per_channel=True, momentum=0.3)
both = pytest.mark.parametrize("config", [BATCH, RUNNING], ids=["batch", "running"])


def swapped(name, config, seed=0):
    # float64: in float32 another summation order can move a value over a knot, where the function jumps
    return tiny_model(name, config, seed).double()


def two_steps(model, padded_to):
    """Logits of two training batches and of one evaluation batch, and the statistics after them."""
    model.train()
    logits = [model(**sentences(LENGTHS, padded_to, seed)).logits for seed in (1, 2)]
    model.eval()
    return [*logits, model(**sentences(LENGTHS, padded_to, 3)).logits], statistics(model)


@every_architecture
@both
def test_padding_changes_neither_logits_nor_statistics(name, config):
    model = swapped(name, config)
    long_logits, long_statistics = two_steps(copy.deepcopy(model), 128)
    short_logits, short_statistics = two_steps(model, 32)
    torch.testing.assert_close(short_logits, long_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(short_statistics, long_statistics, rtol=0, atol=1e-5)
    # the property is empty unless sentences, activations and statistics have a say
    assert short_logits[0].std(0).min() > 1e-3
    assert all(value.min() > 1e-2 for key, value in short_statistics.items() if key.endswith("running_std"))


@every_architecture
@both
def test_padding_changes_no_gradient(name, config):
    gradients = []
    for padded_to in (32, 128):
        model = swapped(name, config).train()
        model(**sentences(LENGTHS, padded_to)).logits.square().sum().backward()
        gradients.append({fqn: p.grad for fqn, p in model.named_parameters() if p.grad is not None})
    assert any("slope" in fqn for fqn in gradients[0])
    for fqn, gradient in gradients[0].items():
        shared = tuple(map(slice, map(min, gradient.shape, gradients[1][fqn].shape)))
        torch.testing.assert_close(gradient, gradients[1][fqn][shared], rtol=1e-5, atol=1e-5)


@every_architecture
def test_statistics_are_those_of_the_real_tokens(name):
    model, inputs = swapped(name, BATCH), sentences(LENGTHS, 40)
    seen = []
    lma_modules(model)[0].register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model.train()(**inputs)
    if name == "albert":
        # its one module averages over the layers that share it
        seen = seen[:1]
        model = swapped(name, BATCH).train()
        model.config.num_hidden_layers = 1
        model(**inputs)
    real = seen[0][inputs["attention_mask"] != 0]
    assert real.shape == (sum(LENGTHS), FFN_WIDTH)
    torch.testing.assert_close(lma_modules(model)[0].running_mean, real.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(lma_modules(model)[0].running_std, real.std(correction=0), rtol=1e-10, atol=0)


@every_architecture
@pytest.mark.parametrize("part", ["whole", "base"])
def test_mask_counts_by_position_too(name, part):
    inputs, after = sentences(LENGTHS, 50), []
    for positional in (True, False):
        model = swapped(name, BATCH).train()
        call = model if part == "whole" else model.base_model
        call(*inputs.values()) if positional else call(**inputs)
        after.append(statistics(model))
    assert after[0].keys() == after[1].keys()
    assert all(torch.equal(value, after[1][key]) for key, value in after[0].items())


def test_without_a_mask_every_token_counts():
    inputs, after = sentences(LENGTHS, 40), []
    for mask in (None, torch.ones(len(LENGTHS), 40)):
        model = swapped("bert", BATCH).train()
        # a mask left from the batch before must not count for this one
        model.eval()(**sentences((3, 3, 3, 3), 40))
        model.train()(inputs["input_ids"], attention_mask=mask)
        after.append(statistics(model))
    torch.testing.assert_close(after[0], after[1], rtol=1e-10, atol=0)


@every_architecture
def test_mask_is_dropped_after_forward_even_when_it_raises(name):
    model, inputs = swapped(name, BATCH).train(), sentences(LENGTHS, 32)
    modules, held = lma_modules(model), []
    modules[0].register_forward_hook(lambda module, args, output: held.append(module.token_mask.value))
    model(**inputs)
    assert held[0] is inputs["attention_mask"]
    assert all(module.token_mask.value is None for module in modules)
    with pytest.raises(IndexError):
        model(torch.full((4, 32), 10_000), attention_mask=inputs["attention_mask"])
    assert all(module.token_mask.value is None for module in modules)


@every_architecture
def test_a_copy_keeps_its_own_mask_and_statistics(name):
    model = swapped(name, BATCH).train()
    twin = copy.deepcopy(model)
    before = statistics(model)
    held = []
    lma_modules(twin)[0].register_forward_hook(
        lambda module, args, output: held.append((module.token_mask.value, lma_modules(model)[0].token_mask.value))
    )
    inputs = sentences(LENGTHS, 48)
    twin(**inputs)
    assert held[0] == (inputs["attention_mask"], None)
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
    # the copy counts real tokens, as the original does
    model(**inputs)
    torch.testing.assert_close(statistics(model), statistics(twin), rtol=0, atol=0)


def test_a_mask_of_another_shape_is_refused_in_training_only():
    model, inputs = swapped("bert", BATCH), sentences(LENGTHS, 32)
    inputs["attention_mask"] = torch.ones(4, 1, 32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"shape \(4, 32\) \(batch, length\), got \(4, 1, 32, 32\)"):
        model.train()(**inputs)
    assert all(value.item() in (0, 1) for value in statistics(model).values())
    assert model.eval()(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert"])
def test_padding_does_not_count_in_a_head_that_was_built_with_hidden_act_lma(name):
    # without a recorded swap every user of hidden_act gets an LMA, the masked-LM head too
    plain = tiny_model(name)
    config = copy.deepcopy(plain.config)
    setattr(config, "activation" if name == "distilbert" else "hidden_act", "lma")
    results = []
    for padded_to in (32, 64):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(config).double().train()
        model(**sentences(LENGTHS, padded_to, 1))
        results.append(statistics(model))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
