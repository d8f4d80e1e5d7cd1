"""What reaches the activations and how far their pieces moved, against plain hooks and numerical integrals."""

import numpy as np
import pytest
import torch
from helpers import padded_batch, tiny_model

import lma_hf
from lma_hf.compare.pre_activations import NUM_BINS, measured_densities, normal_densities, segment_movements
from lma_hf.hub.curves import activation_figure, learned_activations, sample_curve

SETTINGS = {
    "paper": lma_hf.LMAConfig(),
    "fit": lma_hf.LMAConfig(init="fit"),
    "per channel": lma_hf.LMAConfig(init="fit", per_channel=True, num_segments=5),
    "continuous": lma_hf.LMAConfig(init="fit", continuous=True),
    "continuous relu": lma_hf.LMAConfig(continuous=True, per_channel=True),
}
LENGTHS = [9, 20, 30]


def calibrated_model(activation):
    model = tiny_model("bert", num_layers=2)
    lma_hf.swap_activations_(model, activation)
    if isinstance(activation, lma_hf.LMAConfig):
        lma_hf.calibrate_(model, [padded_batch(model, LENGTHS)])
    return model


@pytest.mark.parametrize("activation", [SETTINGS["fit"], SETTINGS["per channel"], "prelu"])
def test_measured_density_is_the_histogram_of_real_tokens(activation):
    model = calibrated_model(activation)
    batches = [padded_batch(model, LENGTHS), padded_batch(model, [4, 7], seed=1)]
    seen = {fqn: [] for fqn in learned_activations(model)}
    for fqn, module in learned_activations(model).items():
        module.register_forward_pre_hook(lambda module, args, seen=seen[fqn]: seen.append(args[0].detach()))
    densities = measured_densities(model, batches)
    for fqn, module in learned_activations(model).items():
        # copies that were sampled before have the hook too
        inputs = seen[fqn][-len(batches) :]
        real = [x[batch["attention_mask"] != 0] for x, batch in zip(inputs, batches, strict=True)]
        values = torch.cat(real).flatten().numpy()
        x, _ = sample_curve(module, 2)
        counts, edges = np.histogram(values, NUM_BINS, (float(x[0]), float(x[1])))
        middles, density = densities[fqn]
        assert middles.numpy() == pytest.approx((edges[1:] + edges[:-1]) / 2, abs=1e-5)
        # values at an edge may fall to either side
        assert density.numpy() == pytest.approx(counts / len(values) / np.diff(edges), abs=5 / len(values) * NUM_BINS)


def test_padding_adds_nothing_to_the_density_and_the_model_stays_as_it_is():
    model = calibrated_model(SETTINGS["fit"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    short, padded = padded_batch(model, LENGTHS), padded_batch(model, LENGTHS, pad_to=38)
    for (_, mine), (_, theirs) in zip(
        measured_densities(model, [short]).values(), measured_densities(model, [padded]).values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0.05)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in learned_activations(model).values())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fit", "per channel"])
def test_normal_density_has_the_running_statistics(name):
    model = calibrated_model(SETTINGS[name])
    for fqn, (x, density) in normal_densities(model).items():
        module = learned_activations(model)[fqn]
        normals = torch.distributions.Normal(module.running_mean.reshape(-1, 1), module.running_std.reshape(-1, 1))
        torch.testing.assert_close(density, normals.log_prob(x).exp().mean(0))
    assert normal_densities(calibrated_model("prelu")) == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_has_moved_after_calibration(name):
    movements = segment_movements(calibrated_model(SETTINGS[name]))
    assert len(movements) == 2
    for moved in movements.values():
        assert moved.shape[1] == SETTINGS[name].num_segments
        torch.testing.assert_close(moved, torch.zeros_like(moved), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["paper", "per channel", "continuous"])
def test_movement_is_the_root_mean_square_over_each_segment(name):
    start, model = calibrated_model(SETTINGS[name]), calibrated_model(SETTINGS[name])
    torch.manual_seed(0)
    for module in learned_activations(model).values():
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    for fqn, moved in segment_movements(model).items():
        mine, theirs = (learned_activations(each)[fqn].double() for each in (model, start))
        lower, step = mine.bounds(mine.running_mean, mine.running_std)
        for segment in range(moved.shape[1]):
            share = (torch.arange(500, dtype=torch.float64)[:, None] + 0.5) / 500
            x = lower + step * (segment + share)
            difference = (mine(x) - theirs(x)).detach()
            torch.testing.assert_close(
                moved[:, segment].double(), difference.square().mean(0).sqrt(), rtol=1e-4, atol=1e-5
            )


def test_density_is_drawn_in_its_panel():
    model = calibrated_model(SETTINGS["fit"])
    densities = normal_densities(model)
    axes = activation_figure(model, densities, "normal density").axes
    drawn = [line for each in axes for line in each.get_lines() if line.get_label() == "normal density"]
    assert len(drawn) == 2
    for line, (x, density) in zip(drawn, densities.values(), strict=True):
        assert line.get_xdata() == pytest.approx(x.numpy())
        assert line.get_ydata() == pytest.approx((density / density.max() / 3).numpy())
