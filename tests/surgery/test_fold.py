"""Folded models: the same answers, bit by bit, from constants."""

import pytest
import torch
from modeling.tiny_models import lma_modules, sentences, tiny_model

import lma_hf
from lma_hf.errors import SurgeryError
from lma_hf.modeling.activation_lma import FoldedLMA

INPUTS = sentences((9, 4, 17), 17)
SETTINGS = {
    "paper": lma_hf.LMAConfig(),
    "running, k = 16": lma_hf.LMAConfig(num_segments=16, statistics="running"),
    "own": lma_hf.LMAConfig(per_channel=True),
    "continuous": lma_hf.LMAConfig(continuous=True),
    "continuous, own": lma_hf.LMAConfig(continuous=True, per_channel=True),
}


def trained(settings):
    model = tiny_model("bert", settings)
    model.train()(**INPUTS)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(**INPUTS).logits


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_answers_from_constants(settings, dtype):
    model = trained(settings).to(dtype)
    before = logits(model)
    assert lma_hf.fold_(model) == 2
    assert torch.equal(logits(model), before)
    assert not lma_modules(model)
    kept = {key.rpartition(".")[2] for key in model.state_dict() if "intermediate_act_fn" in key}
    assert kept == {"slope", "intercept", "lower", "step"}
    model.train()(**INPUTS)
    assert torch.equal(logits(model.eval()), before)


def test_config_object_shared_with_another_model_is_not_touched():
    model = trained(lma_hf.LMAConfig())
    config = model.config
    lma_hf.fold_(model)
    assert not config.ffn_activation["folded"]
    assert model.config.ffn_activation["folded"]
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))


def test_folded_plain_module_can_be_restored():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    lma_hf.swap_activations_(model, target_modules=["1"])
    assert lma_hf.fold_(model) == 1
    assert list(lma_hf.restore_activations_(model).swapped.values()) == ["FoldedLMA"]


def test_restore_puts_the_original_back():
    model, plain = trained(lma_hf.LMAConfig()), tiny_model("bert")
    lma_hf.fold_(model)
    lma_hf.restore_activations_(model)
    assert torch.equal(logits(model), logits(plain.eval()))
    assert not any(isinstance(module, FoldedLMA) for module in model.modules())
    assert not hasattr(model.config, "ffn_activation")


def test_only_an_lma_can_be_folded():
    with pytest.raises(SurgeryError, match="holds no LMA to fold"):
        lma_hf.fold_(tiny_model("bert"))
    model = trained(lma_hf.LMAConfig())
    lma_hf.fold_(model)
    with pytest.raises(SurgeryError, match="holds no LMA to fold"):
        lma_hf.fold_(model)
    with pytest.raises(SurgeryError, match="swapped before"):
        lma_hf.swap_activations_(model)
