"""The picture of the learned activations: what is drawn is what the model computes, and drawing changes nothing."""

import sys

import pytest
import torch
from helpers import padded_batch, tiny_model
from matplotlib.image import imread

import lma_hf
from lma_hf.errors import MissingDependencyError, SurgeryError
from lma_hf.hub.curves import draw_activation_curves, learned_activations, sample_curve, segment_bounds
from lma_hf.modeling.activation_lma import FoldedLMA

ACTIVATIONS = {
    "shared": lma_hf.LMAConfig(init="fit"),
    "per channel": lma_hf.LMAConfig(init="fit", per_channel=True, num_segments=5, statistics="running"),
    "continuous": lma_hf.LMAConfig(init="fit", continuous=True),
    "prelu": "prelu",
    "swish": "swish",
    "gelu_affine": "gelu_affine",
    "aplu": "aplu",
}


def swapped_model(activation, num_layers=2, architecture="bert"):
    model = tiny_model(architecture, num_layers=num_layers)
    lma_hf.swap_activations_(model, activation)
    if isinstance(activation, lma_hf.LMAConfig):
        lma_hf.calibrate_(model, [padded_batch(model, [9, 20, 30])])
    return model


def width_of_picture(model, folder):
    """In pixels. The file must be a whole PNG, not a blank one."""
    draw_activation_curves(model, folder / "curves.png")
    picture = imread(folder / "curves.png")
    assert picture.std() > 0
    return picture.shape[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_picture_of_every_activation(name, tmp_path):
    assert width_of_picture(swapped_model(ACTIVATIONS[name]), tmp_path) > 100


@pytest.mark.parametrize("name", ["per channel", "prelu", "swish"])
def test_model_in_half_precision(name, tmp_path):
    assert width_of_picture(swapped_model(ACTIVATIONS[name]).bfloat16(), tmp_path) > 100


@pytest.mark.parametrize("num_layers", [1, 4, 6])
def test_any_number_of_layers(num_layers, tmp_path):
    model = swapped_model("prelu", num_layers)
    assert len(learned_activations(model)) == num_layers
    assert width_of_picture(model, tmp_path) > 100


def test_layers_that_share_an_activation_are_one_panel():
    assert len(learned_activations(swapped_model("prelu", num_layers=3, architecture="albert"))) == 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_curve_is_what_the_activation_computes(name):
    module = next(iter(learned_activations(swapped_model(ACTIVATIONS[name])).values()))
    x, y = sample_curve(module, 200)
    drawn = ~y.isnan()
    expected = module(x[:, None].expand_as(y).contiguous())
    torch.testing.assert_close(y[drawn], expected[drawn])
    bounds = segment_bounds(module)
    # a gap for each place where one piece ends, and no other
    assert (y.isnan().sum(0) <= (bounds[2] - 1 if bounds else 0)).all()
    assert bounds is None or y.isnan().any()


@pytest.mark.parametrize("settings", [value for value in ACTIVATIONS.values() if isinstance(value, lma_hf.LMAConfig)])
def test_segments_span_the_deviations_and_folding_keeps_the_curve(settings):
    module = next(iter(learned_activations(swapped_model(settings)).values()))
    lower, step, segments = segment_bounds(module)
    torch.testing.assert_close(lower, module.running_mean - settings.range_sigmas * module.running_std)
    torch.testing.assert_close(
        lower + segments * step, module.running_mean + settings.range_sigmas * module.running_std
    )
    for mine, folded in zip(sample_curve(module), sample_curve(FoldedLMA.of(module)), strict=True):
        torch.testing.assert_close(mine, folded, equal_nan=True)


def test_drawing_a_model_in_training_changes_nothing(tmp_path):
    model = swapped_model(ACTIVATIONS["per channel"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_activation_curves(model, tmp_path / "curves.png")
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_nothing_learned_is_an_error(tmp_path):
    with pytest.raises(SurgeryError, match="no learned activation"):
        draw_activation_curves(tiny_model("bert"), tmp_path / "curves.png")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lma_hf\[plots\]'"):
        draw_activation_curves(swapped_model("prelu"), tmp_path / "curves.png")
