"""Calibration on models that answer for each token or hold modules of their own, and what it leaves behind."""

from contextlib import suppress

import pytest
import torch
from helpers import padded_batch, tiny_model
from torch import nn

from lma_hf import LMAConfig, calibrate_, swap_activations_
from lma_hf.errors import SurgeryError
from lma_hf.surgery.eval_mode import eval_mode

FITTED = LMAConfig(init="fit")


def test_every_module_gets_its_own_mode_back():
    model = tiny_model().train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    with suppress(ZeroDivisionError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("pad_to", [12, 30])
def test_report_of_a_token_model_leaves_padding_out(pad_to):
    reports = []
    for width in (9, pad_to):
        model = tiny_model("bert", "masked_lm")
        swap_activations_(model, FITTED)
        reports.append(calibrate_(model, [padded_batch(model, [9, 4, 7], pad_to=width)]))
    assert reports[1].max_logit_difference == pytest.approx(reports[0].max_logit_difference, abs=1e-4)
    assert reports[1].mean_logit_difference == pytest.approx(reports[0].mean_logit_difference, abs=1e-5)
    assert 0.5 < reports[0].label_agreement <= 1


def test_a_model_that_cannot_be_fitted_is_left_as_it_was():
    model = tiny_model()
    swap_activations_(model, FITTED)
    model.bert.encoder.layer[2].intermediate.intermediate_act_fn.__dict__["replaced"] = nn.Softmax(-1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="Softmax"):
        calibrate_(model, [padded_batch(model, [9, 4])])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_models_own_prelu_is_no_earlier_swap():
    model = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.PReLU())
    report = swap_activations_(model, "relu", target_modules=["1"])
    assert report.swapped == {"1": "GELU"}
    assert report.left_alone == {"2": "PReLU"}
