"""The module against the oracle, for every variant: outputs, gradients, statistics, state dict, settings."""

import numpy as np
import pytest
import torch
from modeling.lma_oracle import ema_oracle, knots_oracle, lma_oracle, statistics_oracle, variants

import lma_hf
from lma_hf.modeling.modeling_lma import one_statistics_update

CHANNELS = 5
SHARED_OR_OWN = [False, True]


def make(k=8, momentum=0.1, **settings):
    """A float64 LMA with random parameters and random running statistics."""
    module = lma_hf.LMA(k, momentum=momentum, num_channels=CHANNELS, **settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        module.running_mean.uniform_(-0.5, 0.5, generator=generator)
        module.running_std.uniform_(0.5, 2, generator=generator)
    return module


def batch(seed, shape=(4, 6, CHANNELS)):
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7


def assert_follows_oracle(module, x, mean, std):
    """One forward and backward of `module` equals the oracle with the segments that (mean, std) place."""
    grad, x = batch(99, x.shape), x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(grad)
    lower = mean - module.settings.range_sigmas * std
    step = 2 * module.settings.range_sigmas * std / module.settings.num_segments
    parameters = [parameter.detach() for parameter in module.parameters()]
    oracle = knots_oracle if module.settings.continuous else lma_oracle
    expected = oracle(x.detach(), *parameters, lower, step, grad)
    for mine, reference in zip([y.detach(), x.grad, *(p.grad for p in module.parameters())], expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), reference, rtol=1e-6, atol=1e-6)


def running(module):
    return [buffer.clone().numpy() for buffer in (module.running_mean, module.running_std)]


@pytest.mark.parametrize("settings", variants(), ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("k", [3, 8])
def test_training_and_evaluation_equal_the_oracle(settings, k):
    module = make(k, **settings)
    start, seen = running(module), []
    for seed in range(3):
        x = batch(seed)
        of_batch = statistics_oracle(x, settings["per_channel"])
        of_past = [ema_oracle(values, 0.1) for values in zip(*seen, strict=True)] if seen else of_batch
        used = {"batch": of_batch, "running": of_past, "frozen": start}[settings["statistics"]]
        assert_follows_oracle(module.train(), x, *used)
        seen.append(of_batch)
        if settings["statistics"] != "frozen":
            expected = [ema_oracle(values, 0.1) for values in zip(*seen, strict=True)]
            np.testing.assert_allclose(running(module), expected, rtol=1e-10)
    assert_follows_oracle(module.eval(), batch(7), *running(module))


@pytest.mark.parametrize("per_channel", SHARED_OR_OWN)
def test_one_row_has_the_population_deviation(per_channel):
    # the sample deviation of one row would be NaN
    module = make(per_channel=per_channel).train()
    x = batch(0, (1, CHANNELS))
    module(x)
    np.testing.assert_allclose(running(module)[1], np.zeros(CHANNELS) if per_channel else x.numpy().std(), atol=1e-12)


@pytest.mark.parametrize("per_channel", SHARED_OR_OWN)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_start_is_a_relu_hinged_at_the_running_mean(mean, per_channel):
    module = lma_hf.LMA(per_channel=per_channel, num_channels=CHANNELS).eval()
    module.running_mean.fill_(mean)
    x = torch.linspace(-5, 5, 21)[:, None].expand(-1, CHANNELS)
    torch.testing.assert_close(module(x), torch.where(x >= mean, x, 0), rtol=0, atol=0)


@pytest.mark.parametrize("per_channel", SHARED_OR_OWN)
def test_continuous_start_is_a_relu_at_the_knots(per_channel):
    module = lma_hf.LMA(continuous=True, per_channel=per_channel, num_channels=CHANNELS).eval()
    knots = torch.linspace(-3, 3, 9)[:, None].expand(-1, CHANNELS)
    torch.testing.assert_close(module(knots), knots.relu(), rtol=0, atol=1e-6)
    module.running_mean.fill_(1.0)
    module.height.data.copy_(module.relu_heights())
    torch.testing.assert_close(module(knots + 1), (knots + 1) * (knots > 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", variants()[:4], ids=str)
def test_state_dict(settings):
    module = make(4, **settings)
    rows = (CHANNELS,) if settings["per_channel"] else ()
    shapes = {"running_mean": rows, "running_std": rows, "num_batches_tracked": ()}
    shapes |= {"height": (*rows, 5)} if settings["continuous"] else {"slope": (*rows, 4), "intercept": (*rows, 4)}
    assert {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()} == shapes
    module.train()(batch(0))
    twin = lma_hf.LMA(4, num_channels=CHANNELS, **settings).double()
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.eval()(batch(1)), module.eval()(batch(1)))


def test_training_goes_on_after_a_reload_as_without_one():
    module, twin = make(statistics="running").train(), lma_hf.LMA(momentum=0.1, statistics="running").double()
    module(batch(0))
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(batch(1)), module(batch(1)))
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in twin.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("num_segments", 1, ["1", "2 to 64"]),
        ("num_segments", 65, ["65", "2 to 64"]),
        ("num_segments", 8.0, ["8.0", "whole numbers"]),
        ("num_segments", True, ["True", "whole numbers"]),
        ("range_sigmas", 0, ["0", "above 0"]),
        ("range_sigmas", float("nan"), ["nan", "above 0"]),
        ("momentum", 0.0, ["0.0", "above 0"]),
        ("momentum", 1.5, ["1.5", "up to 1"]),
        ("statistics", "batched", ["'batched'", "batch, running, frozen", "did you mean 'batch'"]),
        ("init", "gelu", ["'gelu'", "relu, fit"]),
    ],
)
def test_bad_settings_name_the_value_and_what_is_allowed(key, value, named):
    for build in (lma_hf.LMAConfig, lma_hf.LMA):
        with pytest.raises(ValueError, match=f"{key} is ") as error:
            build(**{key: value})
        assert all(part in str(error.value) for part in named)


def test_own_pieces_need_the_number_of_channels():
    with pytest.raises(ValueError, match="num_channels"):
        lma_hf.LMA(per_channel=True)


@pytest.mark.parametrize(
    "settings",
    [lma_hf.LMAConfig(statistics=name, momentum=0.3) for name in ("batch", "running")],
    ids=["batch", "running"],
)
def test_statistics_move_once_a_step_by_all_that_was_seen(settings):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = (torch.nn.Sequential(lma_hf.LMA.from_settings(settings)).train() for _ in range(2))
    for module in (whole, parts):
        module(x[:20])
    before = parts[0].running_mean.clone()
    expected = whole(x)
    with one_statistics_update(parts):
        outputs = [parts(part) for part in x.split((7, 50, 3))]
        assert torch.equal(parts[0].running_mean, before)
    torch.testing.assert_close(dict(parts.named_buffers()), dict(whole.named_buffers()), rtol=1e-6, atol=1e-6)
    if settings.statistics == "running":
        torch.testing.assert_close(torch.cat(outputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("per_channel", SHARED_OR_OWN)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_running_statistics_of_a_bfloat16_model_move(statistics, per_channel):
    settings = {"statistics": statistics, "per_channel": per_channel, "num_channels": CHANNELS}
    exact, half = lma_hf.LMA(**settings).train(), lma_hf.LMA(**settings).bfloat16().train()
    for seed in range(200):
        x = (batch(seed) * (1 + 0.005 * seed)).bfloat16()
        half(x)
        exact(x.float())
    for mine, theirs in zip(running(half.float()), running(exact), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2**-7)


def test_statistics_that_were_set_in_bfloat16_are_gone_on_from():
    module = lma_hf.LMA().bfloat16().train()
    module(batch(0).bfloat16())
    module.running_mean.fill_(100)
    module(batch(1).bfloat16())
    assert module.running_mean > 40


def test_replicas_of_data_parallel_are_refused_in_training():
    module = lma_hf.LMA().train()
    with pytest.raises(RuntimeError, match=r"DataParallel, .*accelerate launch or torchrun"):
        module._replicate_for_data_parallel()
    assert isinstance(module.eval()._replicate_for_data_parallel(), lma_hf.LMA)
