"""Gradient checkpointing runs forward twice; that must change nothing (LMA.md, defect 6)."""

import functools

import pytest
import torch
from modeling.tiny_models import ARCHITECTURES, lma_modules, sentences, statistics, tiny_model
from torch.utils.checkpoint import checkpoint

import lma_hf

LENGTHS = (30, 4, 17, 9)
CONFIGS = {
    "batch": lma_hf.LMAConfig(momentum=0.3),
    "running": lma_hf.LMAConfig(momentum=0.3, statistics="running", per_channel=True),
    "continuous": lma_hf.LMAConfig(momentum=0.3, statistics="running", continuous=True),
}


def checkpoint_layers(model, use_reentrant):
    if model.supports_gradient_checkpointing:
        # older releases of transformers 5 know the second name only
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        return enable({"use_reentrant": use_reentrant})
    for layer in model.modules():
        if type(layer).__name__ in ("AlbertLayer", "MPNetLayer"):
            layer.forward = functools.partial(run_checkpointed, layer.forward, use_reentrant)


def run_checkpointed(forward, use_reentrant, *args, **kwargs):
    return checkpoint(functools.partial(forward, **kwargs), *args, use_reentrant=use_reentrant)


def train(name, config, use_reentrant, batches, one_backward=True):
    """Losses, gradients and statistics after forward passes of all batches, then backward passes of all.

    use_reentrant: None for no checkpointing. Also returns how often LMA ran.
    """
    model, calls = tiny_model(name, config, num_layers=3).double().train(), []
    if use_reentrant is not None:
        checkpoint_layers(model, use_reentrant)
    for module in lma_modules(model):
        module.register_forward_pre_hook(lambda module, args: calls.append(torch.is_grad_enabled()))
    model(**sentences(LENGTHS, 40, seed=9)).logits.sum().backward()
    model.zero_grad()
    losses = [model(**inputs, labels=torch.tensor([0, 1, 1, 0])).loss for inputs in batches]
    for loss in [sum(losses)] if one_backward else losses:
        loss.backward()
    return losses, {fqn: p.grad for fqn, p in model.named_parameters()}, statistics(model), len(calls)


def assert_same_with_checkpointing(name, config, use_reentrant, *batches):
    *plain, plain_calls = train(name, config, None, *batches)
    *checkpointed, checkpointed_calls = train(name, config, use_reentrant, *batches)
    assert checkpointed_calls == 2 * plain_calls
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-12)
    return plain[2]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointing_changes_nothing(name, config, use_reentrant):
    after = assert_same_with_checkpointing(name, config, use_reentrant, [sentences(LENGTHS, 40)])
    updates = {value.item() for key, value in after.items() if key.endswith("num_batches_tracked")}
    # two forward passes; ALBERT's three layers share one module
    assert updates == {6 if name == "albert" else 2}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["bert", "albert"])
@pytest.mark.parametrize("one_backward", [True, False])
def test_two_forward_passes_before_backward(name, config, use_reentrant, one_backward):
    # apart, the first pass runs again before the second; in one backward after it
    batches = [sentences(LENGTHS, 40, seed=1), sentences(LENGTHS, 40, seed=2)]
    assert_same_with_checkpointing(name, config, use_reentrant, batches, one_backward)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_batches_of_different_lengths_before_one_backward(use_reentrant):
    batches = [sentences(LENGTHS, padded_to, seed=1) for padded_to in (40, 31)]
    assert_same_with_checkpointing("bert", CONFIGS["running"], use_reentrant, batches)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_the_same_batch_twice_before_one_backward(name, config, use_reentrant):
    # with running statistics the second pass sees other segments than the first, for the same input
    assert_same_with_checkpointing(name, config, use_reentrant, [sentences(LENGTHS, 40)] * 2)


def passes_before_one_backward(*inputs):
    """The gradient of every input."""
    module, inputs = lma_hf.LMA().train(), [x.detach().requires_grad_() for x in inputs]
    sum(checkpoint(module, x, use_reentrant=False).sum() for x in inputs).backward()
    return [x.grad for x in inputs]


def test_input_of_a_pass_that_is_forgotten_is_an_error():
    inputs = torch.randn(65, 4, 32, generator=torch.Generator().manual_seed(0))
    passes_before_one_backward(*inputs[1:])
    for first in (inputs[0], inputs[0, 0, :3]):
        with pytest.raises(RuntimeError, match="none of its last 64 forward passes had"):
            passes_before_one_backward(first, *inputs[1:])


def test_input_that_is_not_finite_is_known_again():
    finite, *broken = torch.randn(4, 32), torch.full((4, 32), torch.nan), torch.full((4, 32), torch.inf)
    gradient, *others = passes_before_one_backward(finite, *broken)
    # each pass has the statistics of its own batch, so the others change nothing
    assert torch.equal(gradient, passes_before_one_backward(finite)[0])
    assert gradient.any()
    assert all(other is not None for other in others)
