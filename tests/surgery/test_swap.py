import functools

import pytest
import torch
from helpers import ARCHITECTURES, HEADS, ffn_fqns, logits_of, padded_batch, tiny_config, tiny_model
from torch import nn

from lma_hf import LMA, BaselineConfig, LMAConfig, fold_, restore_activations_, swap_activations_
from lma_hf.errors import SurgeryError

# activations that a swap must not touch; the other models have none
BYSTANDERS = {
    ("bert", "classification"): {"bert.pooler.activation": "Tanh"},
    ("bert", "masked_lm"): {"cls.predictions.transform.transform_act_fn": "GELUActivation"},
    ("distilbert", "masked_lm"): {"activation": "GELUActivation"},
    ("electra", "classification"): {"classifier.activation": "GELUActivation"},
    ("electra", "masked_lm"): {"generator_predictions.activation": "GELUActivation"},
    ("albert", "classification"): {"albert.pooler_activation": "Tanh"},
    ("albert", "masked_lm"): {"predictions.activation": "NewGELUActivation"},
}
LAYER_1 = "bert.encoder.layer.1.intermediate.intermediate_act_fn"
SETTINGS = [LMAConfig(), LMAConfig(num_segments=4, continuous=True, per_channel=True)]
SETTINGS += [BaselineConfig(name) for name in ("relu", "gelu", "gelu_affine", "prelu", "swish", "aplu")]
on_every_model = pytest.mark.parametrize(
    ("architecture", "head"), [(architecture, head) for architecture in ARCHITECTURES for head in HEADS]
)


class PlainNet(nn.Module):
    """A network without a config: two blocks and an output."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))
        self.out = nn.Sequential(nn.Linear(4, 2), nn.Tanh())

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def class_names(model):
    return {fqn: type(module).__name__ for fqn, module in model.named_modules()}


def comparable(config):
    """A config as a dict, without what every save or load changes."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@on_every_model
def test_exactly_the_ffn_activations_are_swapped(architecture, head):
    model = tiny_model(architecture, head)
    before = class_names(model)
    report = swap_activations_(model)
    expected = ffn_fqns(architecture)
    assert report.swapped == {fqn: before[fqn] for fqn in expected}
    assert report.left_alone == BYSTANDERS.get((architecture, head), {})
    after = class_names(model)
    assert {fqn for fqn in before if after[fqn] != before[fqn]} == set(expected)
    assert all(type(model.get_submodule(fqn)) is LMA for fqn in expected)
    assert all(fqn in str(report) for fqn in [*report.swapped, *report.left_alone])


@on_every_model
@pytest.mark.parametrize("settings", [LMAConfig(per_channel=True), BaselineConfig("relu")], ids=["lma", "relu"])
def test_restored_model_is_the_old_one(architecture, head, settings):
    model = tiny_model(architecture, head)
    batch = padded_batch(model, [7, 4])
    logits, config, modules = logits_of(model, batch), model.config.to_dict(), class_names(model)
    swap_activations_(model, settings)
    assert not torch.equal(logits_of(model, batch), logits)
    report = restore_activations_(model)
    assert list(report.swapped) == ffn_fqns(architecture)
    assert torch.equal(logits_of(model, batch), logits)
    assert model.config.to_dict() == config
    assert class_names(model) == modules


@pytest.mark.parametrize(
    ("architecture", "head", "settings"),
    [(architecture, head, LMAConfig()) for architecture in ARCHITECTURES for head in HEADS]
    + [(architecture, "masked_lm", BaselineConfig("relu")) for architecture in ("bert", "distilbert")],
    ids=lambda value: getattr(value, "name", value),
)
def test_restored_after_reload(architecture, head, settings, tmp_path):
    model = tiny_model(architecture, head)
    batch = padded_batch(model, [7, 4])
    logits = logits_of(model, batch)
    model.save_pretrained(tmp_path / "plain")
    expected = HEADS[head].from_pretrained(tmp_path / "plain")
    swap_activations_(model, settings)
    model.save_pretrained(tmp_path / "swapped")
    loaded = HEADS[head].from_pretrained(tmp_path / "swapped").eval()
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    restore_activations_(loaded)
    assert torch.equal(logits_of(loaded, batch), logits)
    assert comparable(loaded.config) == comparable(expected.config)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_every_activation_can_be_swapped_and_restored_twice(settings):
    model = tiny_model("albert")
    batch = padded_batch(model, [7, 4])
    logits = logits_of(model, batch)
    for _ in range(2):
        swap_activations_(model, settings)
        swapped = logits_of(model, batch)
        restore_activations_(model)
        assert torch.equal(logits_of(model, batch), logits)
        assert not torch.equal(swapped, logits)


@pytest.mark.parametrize("restore", [False, True])
def test_mode_of_the_model_reaches_the_placed_modules(restore):
    model = tiny_model().train()
    swap_activations_(model)
    model.eval()
    if restore:
        restore_activations_(model)
    assert not any(module.training for module in model.modules())


def test_config_object_shared_with_another_model_is_not_touched():
    config = tiny_config("bert")
    model, other = tiny_model(config=config), tiny_model(config=config)
    before = config.to_dict()
    swap_activations_(model)
    assert other.config is config
    assert config.to_dict() == before
    assert other.bert.encoder.layer[0].attention.self.config is config
    held = [module.config for module in model.modules() if hasattr(module, "config")]
    assert len(held) > 2
    assert all(each is model.config for each in held)


@pytest.mark.parametrize(
    "selection",
    [
        {"target_modules": r"bert\.encoder\.layer\.1\..*act_fn"},
        {"target_modules": ["layer.1.intermediate.intermediate_act_fn"]},
        {"filter_fn": lambda module, fqn: "layer.1." in fqn and type(module).__name__ == "GELUActivation"},
    ],
    ids=["regex", "suffixes", "filter_fn"],
)
def test_selected_sites_only_also_after_reload(selection, tmp_path):
    model = tiny_model()
    batch = padded_batch(model, [7, 4])
    report = swap_activations_(model, BaselineConfig("relu"), **selection)
    assert list(report.swapped) == [LAYER_1]
    assert len(report.left_alone) == 3
    model.save_pretrained(tmp_path)
    loaded = HEADS["classification"].from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": ["nowhere"]}, rf"nowhere.*{LAYER_1}.*bert\.pooler\.activation"),
        # suffixes are whole names
        ({"target_modules": ["act_fn"]}, "no module"),
        ({"filter_fn": lambda module, fqn: False}, LAYER_1),
        ({"filter_fn": lambda module, fqn: True}, "root BertForSequenceClassification"),
        ({"target_modules": ".*"}, "root BertForSequenceClassification"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"target_modules": ["intermediate.dense"]}, r"layer\.0\.intermediate\.dense is a Linear"),
        ({"target_modules": ["x"], "filter_fn": lambda module, fqn: True}, "one of them"),
        ({"config": LMAConfig(per_channel=True), "target_modules": ["pooler.activation"]}, "not in an FFN"),
    ],
)
def test_unusable_selection_is_an_error_and_changes_nothing(arguments, message):
    model = tiny_model()
    modules, config = class_names(model), model.config.to_dict()
    with pytest.raises(SurgeryError, match=message):
        swap_activations_(model, **arguments)
    assert class_names(model) == modules
    assert model.config.to_dict() == config


def test_site_in_the_head_cannot_be_recorded():
    with pytest.raises(SurgeryError, match=r"classifier\.activation is outside"):
        swap_activations_(tiny_model("electra"), target_modules=["classifier.activation"])


@pytest.mark.parametrize("reload", [False, True])
def test_swapping_twice_is_an_error(reload, tmp_path):
    model = tiny_model()
    swap_activations_(model, BaselineConfig("relu"))
    if reload:
        model.save_pretrained(tmp_path)
        model = HEADS["classification"].from_pretrained(tmp_path)
    with pytest.raises(SurgeryError, match="restore_activations_ first"):
        swap_activations_(model)


def test_nothing_to_restore_is_an_error():
    with pytest.raises(SurgeryError, match="nothing to restore"):
        restore_activations_(tiny_model())


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ValueError, match=r"'swosh'.*did you mean 'swish'"):
        swap_activations_(tiny_model(), "swosh")
    with pytest.raises(TypeError, match="dict"):
        swap_activations_(tiny_model(), {"num_segments": 8})


def test_plain_module_is_searched_for_ffns():
    model = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), PlainNet()])
    assert swap_activations_(model).swapped == {"0.1": "GELU"}


def test_model_without_an_ffn_says_what_is_there():
    with pytest.raises(SurgeryError, match=r"PlainNet: its activations, such as blocks.0.1 \(GELU\), .*filter_fn"):
        swap_activations_(PlainNet())
    with pytest.raises(SurgeryError, match="Linear: its FFN calls a function"):
        swap_activations_(nn.Linear(4, 4))


def test_plain_module_with_a_filter():
    model, x = PlainNet(), torch.randn(5, 4)
    before = model(x)
    report = swap_activations_(model, filter_fn=lambda module, fqn: isinstance(module, nn.GELU))
    assert report.swapped == {"blocks.0.1": "GELU", "blocks.1.1": "GELU"}
    assert report.left_alone == {"out.1": "Tanh"}
    assert not torch.equal(model(x), before)
    restore_activations_(model)
    assert torch.equal(model(x), before)


class Wrapper(nn.Module):
    """A transformers model as a part of something else."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.head = model, nn.Linear(2, 2)

    def forward(self, **inputs):
        return self.head(self.encoder(**inputs).logits)


@pytest.mark.parametrize(
    ("wrap", "inner"), [(Wrapper, "encoder"), (functools.partial(torch.compile, backend="eager"), "_orig_mod")]
)
def test_wrapped_model_whose_config_would_not_know_is_refused(wrap, inner):
    model = tiny_model()
    wrapper, modules, config = wrap(model), class_names(model), model.config.to_dict()
    with pytest.raises(SurgeryError, match=rf"BertForSequenceClassification at {inner!r}"):
        swap_activations_(wrapper)
    assert class_names(model) == modules
    assert model.config.to_dict() == config
    swap_activations_(getattr(wrapper, inner))
    for change_ in (fold_, restore_activations_):
        with pytest.raises(SurgeryError, match=rf"BertForSequenceClassification at {inner!r}"):
            change_(wrapper)
    assert any(isinstance(module, LMA) for module in wrapper.modules())


def test_activations_are_placed_where_the_weights_around_them_are():
    model = tiny_model()
    model.bert.embeddings.to("meta")
    swap_activations_(model)
    assert {parameter.device.type for parameter in model.bert.encoder.parameters()} == {"cpu"}


def test_offloaded_weights_are_an_error_and_nothing_changes():
    model = tiny_model()
    model.bert.encoder.layer[1].to("meta")
    modules, config = class_names(model), model.config.to_dict()
    with pytest.raises(SurgeryError, match=rf"the weights around {LAYER_1} are offloaded.*swap before"):
        swap_activations_(model)
    assert class_names(model) == modules
    assert model.config.to_dict() == config


def test_one_activation_instance_in_several_layers_becomes_one_lma_each():
    model, shared = tiny_model(), nn.GELU()
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = shared
    report = swap_activations_(model)
    assert list(report.swapped) == ffn_fqns("bert")
    assert len({id(model.get_submodule(fqn)) for fqn in report.swapped}) == 3
    restore_activations_(model)
    assert all(model.get_submodule(fqn) is shared for fqn in report.swapped)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_class_is_patched(architecture):
    model = tiny_model(architecture)
    batch = padded_batch(model, [7, 4])
    logits = logits_of(model, batch)
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    before = {cls: dict(vars(cls)) for cls in classes}
    swap_activations_(model)
    model(**batch).logits.sum().backward()
    for cls in classes:
        assert {name for name in before[cls] if vars(cls).get(name) is not before[cls][name]} == set(), cls
        assert set(vars(cls)) == set(before[cls]), cls
    assert torch.equal(logits_of(tiny_model(architecture), batch), logits)


@pytest.mark.parametrize("settings", [LMAConfig(), BaselineConfig("relu")], ids=["lma", "relu"])
def test_pooler_that_looks_its_activation_up_stays_as_it_was(settings, tmp_path):
    model = tiny_model("deberta-v2")
    hidden = torch.randn(2, 7, model.config.hidden_size)
    pooled = model.pooler(hidden)
    swap_activations_(model, settings)
    assert torch.equal(model.pooler(hidden), pooled)
    model.save_pretrained(tmp_path)
    loaded = HEADS["classification"].from_pretrained(tmp_path)
    assert torch.equal(loaded.pooler(hidden), pooled)


def test_half_precision_model_reloads_bit_equal(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    swap_activations_(model, LMAConfig(per_channel=True))
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    batch = padded_batch(model, [9, 4])
    reloaded = type(model).from_pretrained(tmp_path).eval()
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(logits_of(reloaded, batch), logits_of(model, batch))


def test_code_that_a_model_names_already_stays_named(tmp_path):
    model = tiny_model()
    model.config.auto_map = {"AutoModelForCTC": "their_code.TheirModel"}
    swap_activations_(model)
    model.save_pretrained(tmp_path)
    names = model.config.auto_map
    assert names["AutoModelForCTC"] == "their_code.TheirModel"
    assert names["AutoModel"] == "modeling_lma.BertModel"
    restore_activations_(model)
    assert model.config.auto_map == {"AutoModelForCTC": "their_code.TheirModel"}
    del model.config.auto_map
    swap_activations_(model)
    model.save_pretrained(tmp_path)
    restore_activations_(model)
    assert not hasattr(model.config, "auto_map")
