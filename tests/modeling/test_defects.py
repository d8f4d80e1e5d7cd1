"""The eight defects of the authors' LMA code that this project must not have, one section each.

Real models, processes and reentrant checkpointing are in test_padding, test_processes and test_checkpointing.
"""

import math

import numpy as np
import pytest
import torch
from modeling.lma_oracle import ema_oracle, statistics_oracle, variants
from modeling.tiny_models import ARCHITECTURES, tiny_model
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification

import lma_hf
from lma_hf.modeling.activation_baselines import APLU
from lma_hf.modeling.statistics_lma import merge_statistics, to_std, token_statistics
from lma_hf.modeling.token_mask_lma import TokenMask

BUFFERS = {"running_mean", "running_std", "num_batches_tracked"}
SHARED_OR_OWN = pytest.mark.parametrize("per_channel", [False, True])


def batch(seed, *shape, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5).to(dtype)


def snapshot(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


# 1: statistics that are neither saved nor moved, and garbage after from_pretrained


def test_defect_1_statistics_are_saved_and_moved():
    module = lma_hf.LMA()
    assert module.state_dict().keys() >= BUFFERS
    assert all(buffer.is_meta for buffer in module.to("meta").buffers())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defect_1_checkpoint_without_lma_loads_with_start_values(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path)
    key = "activation" if name == "distilbert" else "hidden_act"
    # memory that is left uninitialised would show what was in it before
    leftovers = [torch.full((n,), 7.0) for n in (1, 1, 2, 4, 8, 8, 16, 64) * 50]
    del leftovers
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, **{key: "lma"})
    modules = [module for module in model.modules() if isinstance(module, lma_hf.LMA)]
    assert modules
    for module in modules:
        start = {"slope": [0.0] * 4 + [1.0] * 4, "intercept": [0.0] * 8, "running_mean": 0.0, "running_std": 1.0}
        assert {key: tensor.tolist() for key, tensor in module.state_dict().items()} == {
            **start,
            "num_batches_tracked": 0,
        }


# 2: moving statistics that start at 0 without bias correction


@SHARED_OR_OWN
@pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
def test_defect_2_identical_batches_give_their_statistics_exactly(momentum, per_channel):
    module = lma_hf.LMA(momentum=momentum, per_channel=per_channel, num_channels=6).train()
    x = batch(0, 4, 5, 6)
    _, mean, m2 = token_statistics(x, None, per_channel)
    for _ in range(5):
        module(x)
        torch.testing.assert_close(module.running_mean, mean, rtol=5e-7, atol=1e-7)
        torch.testing.assert_close(
            module.running_std, to_std(torch.tensor(20 if per_channel else 120), m2), rtol=5e-7, atol=0
        )


@SHARED_OR_OWN
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_defect_2_varying_batches_give_the_unbiased_average(n, per_channel):
    module = lma_hf.LMA(per_channel=per_channel, num_channels=6).train()
    batches = [(1 + seed) * batch(seed, 4, 5, 6) for seed in range(n)]
    for x in batches:
        module(x)
    mean, std = zip(*(statistics_oracle(x, per_channel) for x in batches), strict=True)
    np.testing.assert_allclose(module.running_mean.numpy(), ema_oracle(mean, 0.01), rtol=5e-6, atol=1e-6)
    np.testing.assert_allclose(module.running_std.numpy(), ema_oracle(std, 0.01), rtol=5e-6)
    assert module.num_batches_tracked == n


# 3: moving statistics that are updated in eval()


@pytest.mark.parametrize("settings", variants(), ids=str)
def test_defect_3_evaluation_changes_nothing(settings):
    module = lma_hf.LMA(**settings, num_channels=6).train()
    module(batch(0, 4, 6))
    before = snapshot(module.eval())
    module(5 * batch(1, 4, 6)).sum().backward()
    assert same(before, snapshot(module))


# 4: statistics over padding tokens


@SHARED_OR_OWN
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_defect_4_padding_does_not_count(statistics, per_channel):
    x = batch(0, 3, 9, 6, dtype=torch.float64)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    module = lma_hf.LMA(statistics=statistics, per_channel=per_channel, num_channels=6).double().train()
    module.token_mask = TokenMask()
    module.token_mask.value = mask
    y = module(torch.where(mask[..., None] != 0, x, 1e3))
    mean, std = statistics_oracle(x, per_channel, mask)
    np.testing.assert_allclose(module.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(module.running_std.numpy(), std, rtol=1e-12)
    module.token_mask.value = None
    alone = module.eval()(x[mask != 0])
    torch.testing.assert_close(y[mask != 0], alone, rtol=0, atol=1e-12)


# 5: every process with statistics of its own


@SHARED_OR_OWN
@pytest.mark.parametrize("sizes", [(4, 4), (1, 7), (0, 8), (3, 4, 1)])
def test_defect_5_parts_merge_to_the_statistics_of_the_whole(sizes, per_channel):
    x = 100 + batch(0, 8, 6)
    parts = [token_statistics(part, None, per_channel) for part in x.split(sizes)]
    count, mean, m2 = merge_statistics(*(torch.stack(values) for values in zip(*parts, strict=True)))
    expected_mean, expected_std = statistics_oracle(x, per_channel)
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-6)
    np.testing.assert_allclose(to_std(count, m2).numpy(), expected_std, rtol=1e-4)


# 6: gradient checkpointing updates twice


@SHARED_OR_OWN
@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_defect_6_second_forward_of_checkpointing_uses_the_first_statistics(statistics, per_channel, use_reentrant):
    results = []
    for recompute in (False, True):
        module = lma_hf.LMA(statistics=statistics, per_channel=per_channel, num_channels=6, momentum=0.5).train()
        module(batch(0, 4, 6))
        x, other = (batch(seed, 4, 6).requires_grad_() for seed in (1, 2))
        run = (lambda value, m=module: checkpoint(m, value, use_reentrant=use_reentrant)) if recompute else module
        (run(x).square().sum() + run(3 * other).square().sum()).backward()
        assert module.num_batches_tracked == 3
        gradients = [x.grad, other.grad, *(parameter.grad for parameter in module.parameters())]
        results.append([*gradients, module.running_mean, module.running_std])
    assert all(torch.equal(plain, again) for plain, again in zip(*results, strict=True))


# 7: int64 indices and three tensors kept an element; APLU raises NameError


@pytest.mark.parametrize("settings", variants(), ids=str)
def test_defect_7_backward_keeps_the_input_and_no_index(settings):
    module = lma_hf.LMA(**settings, num_channels=16).train()
    x, kept = batch(0, 64, 16).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()] == [x.data_ptr()]
    assert all(tensor.is_floating_point() for tensor in kept)


def test_defect_7_aplu_constructs_and_starts_as_relu():
    x = batch(0, 5, 6)
    assert torch.equal(APLU(6)(x), x.relu())


# 8: low-precision statistics, NaN for a constant input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@SHARED_OR_OWN
def test_defect_8_statistics_of_low_precision_input_are_float32(dtype, per_channel):
    module = lma_hf.LMA(per_channel=per_channel, num_channels=4).train()
    module.token_mask = TokenMask()
    module.token_mask.value = mask = (torch.arange(40) < 31).long().repeat(64, 1)
    # sums pass float16's maximum and bfloat16's integers
    x = (100 * batch(0, 64, 40, 4)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == dtype
    mean, std = statistics_oracle(x.double(), per_channel, mask)
    assert module.running_mean.dtype == module.running_std.dtype == torch.float32
    np.testing.assert_allclose(module.running_mean.numpy(), mean, rtol=2e-5)
    np.testing.assert_allclose(module.running_std.numpy(), std, rtol=2e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [v for v in variants() if v["init"] == "relu"], ids=str)
def test_defect_8_constant_input_gives_no_nan(settings, dtype, value):
    module = lma_hf.LMA(**settings, num_channels=6).train()
    for _ in range(2):
        x = torch.full((4, 6), value, dtype=dtype, requires_grad=True)
        y = module(x)
        y.sum().backward()
        assert all(tensor.isfinite().all() for tensor in (y, *module.buffers()))
        gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
        # the slope of a continuous piece of no width may pass float16's maximum
        may_overflow = settings["continuous"] and dtype == torch.float16
        assert not any(gradient.isnan().any() for gradient in gradients)
        assert may_overflow or all(gradient.isfinite().all() for gradient in gradients)
    assert module.eval()(x).isfinite().all()


@pytest.mark.parametrize("value", [0.1, 0.7])
@pytest.mark.parametrize("statistics", ["batch", "running"])
@SHARED_OR_OWN
def test_defect_8_rounding_of_a_constant_gives_no_nan(per_channel, statistics, value):
    module = lma_hf.LMA(statistics=statistics, per_channel=per_channel, num_channels=768).train()
    for _ in range(2):
        assert module(torch.full((4, 768), value)).isfinite().all()
    assert all(buffer.isfinite().all() for buffer in module.buffers())


def test_defect_8_deviation_is_never_the_root_of_a_negative_number():
    found = to_std(torch.tensor([4.0, 4.0, 4.0]), torch.tensor([-1e-9, 16.0, math.nan]))
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, math.nan]), equal_nan=True)
