import math

import pytest
import torch
from helpers import ARCHITECTURES, tiny_model
from torch import nn

from lma_hf import LMAConfig, swap_activations_
from lma_hf.compare.tiny_architectures import FAMILIES, build
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.training.config import TeachConfig
from lma_hf.training.optimizer import build_optimizer, build_scheduler, parameter_groups


def config_with(**values):
    return TeachConfig(task_name="sst2", output_dir="unused", model_name_or_path="unused", **values)


CONFIG = config_with(learning_rate=1e-3, activation_learning_rate=7e-3, weight_decay=0.2)


def norm_names(model):
    return {
        f"{fqn}.{name}"
        for fqn, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters()
    }


@pytest.mark.parametrize("settings", [LMAConfig(), LMAConfig(continuous=True), "aplu"], ids=["lma", "heights", "aplu"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trainable_parameter_is_in_its_group_exactly_once(architecture, settings):
    model = tiny_model(architecture)
    swap_activations_(model, settings)
    model.get_input_embeddings().requires_grad_(False)
    objective = nn.ModuleDict({"projection": nn.Linear(4, 3)})
    groups = parameter_groups([model, objective], activation_parameters(model), CONFIG)
    names = {id(p): name for module in (model, objective) for name, p in module.named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    trainable = {name for module in (model, objective) for name, p in module.named_parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    assert not any("word_embeddings" in name for name in grouped)

    learnable = {name for name in trainable if name.endswith(("slope", "intercept", "height", "hinge"))}
    no_decay = {name for name in trainable if name.endswith("bias")} | norm_names(model)
    expected = {**dict.fromkeys(trainable, (1e-3, 0.2)), **dict.fromkeys(no_decay, (1e-3, 0.0))}
    expected |= dict.fromkeys(learnable, (7e-3, 0.0))
    settings_of = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert settings_of == expected
    assert {rate for rate, _ in settings_of.values()} == {1e-3, 7e-3}


@pytest.mark.parametrize(
    ("family", "model_type"),
    [("decoder", "llama"), ("decoder", "nemotron"), ("encoder-decoder", "t5"), ("encoder", "squeezebert")],
)
def test_norms_that_are_not_torchs_do_not_decay(family, model_type):
    model = build(next(each for each in FAMILIES if each.name == family), model_type)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, no_decay = ([names[id(p)] for p in group["params"]] for group in parameter_groups([model], (), CONFIG))
    assert any("norm" in name.lower() and name.endswith("weight") for name in no_decay)
    assert not any("norm" in name.rsplit(".", 2)[-2].lower() for name in decay)
    assert all(model.get_parameter(name).dim() > 1 for name in decay)


def test_groups_without_parameters_are_absent():
    model = tiny_model()
    groups = parameter_groups([model, nn.Module()], activation_parameters(model), CONFIG)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]


def test_without_gradient_only_what_decays_shrinks():
    model = tiny_model()
    swap_activations_(model)
    optimizer = build_optimizer([model], activation_parameters(model), CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert decayed == {name for name in before if before[name].dim() == 2}
    name = "classifier.weight"
    torch.testing.assert_close(model.get_parameter(name), before[name] * (1 - 1e-3 * 0.2))


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedule(kind, warmup_ratio):
    steps = 10
    config = config_with(
        learning_rate=2.0, activation_learning_rate=6.0, lr_scheduler_type=kind, warmup_ratio=warmup_ratio
    )
    model = tiny_model()
    swap_activations_(model)
    optimizer = build_optimizer([model], activation_parameters(model), config)
    scheduler = build_scheduler(optimizer, steps, config)
    warmup = math.ceil(warmup_ratio * steps)
    for step in range(steps + 1):
        left = (steps - step) / (steps - warmup)
        share = step / warmup if step < warmup else left if kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
        assert scheduler.get_last_lr() == pytest.approx([2 * share, 2 * share, 6 * share], abs=1e-12)
        optimizer.step()
        scheduler.step()
