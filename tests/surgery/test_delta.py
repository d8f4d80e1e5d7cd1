"""Frozen models, and deltas that turn their base into them, bit by bit."""

import json

import pytest
import torch
from helpers import HEADS, NoTokenizer, ffn_fqns, padded_batch, tiny_config, tiny_model
from safetensors.torch import load_file

import lma_hf
from lma_hf.errors import SurgeryError
from lma_hf.surgery.trainable import trained_parameters
from lma_hf.training.checkpoint import save_model

SETTINGS = {
    "shared": lma_hf.LMAConfig(init="fit", statistics="running"),
    "own": lma_hf.LMAConfig(init="fit", statistics="running", per_channel=True),
    "continuous": lma_hf.LMAConfig(continuous=True, init="fit"),
    "aplu": lma_hf.BaselineConfig("aplu"),
}
TRAIN = ("activations", "activations+bias", "activations+head")


def trained(settings, train, architecture="bert", **swap):
    """A swapped model after a few steps in which only what `train` says has moved."""
    model = tiny_model(architecture)
    lma_hf.swap_activations_(model, settings, **swap)
    batch = padded_batch(model, [9, 5, 12])
    if settings.name == "lma":
        lma_hf.calibrate_(model, [batch])
    lma_hf.train_only_(model, train)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for _ in range(3):
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def assert_same(model, expected):
    state, wanted = model.state_dict(), expected.state_dict()
    assert set(state) == set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in state)
    batch = padded_batch(expected, [9, 5, 12])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected(**batch).logits)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("train", TRAIN)
def test_delta_turns_the_base_into_the_model(tmp_path, settings, train):
    model = trained(settings, train)
    lma_hf.save_delta(model, tmp_path, train=train)
    assert_same(lma_hf.load_delta_(tiny_model(), tmp_path), model)
    # a swapped model will do as well, and the result saves and reloads like any other
    swapped = tiny_model()
    lma_hf.swap_activations_(swapped, settings)
    save_model(lma_hf.load_delta_(swapped, tmp_path), NoTokenizer(), tmp_path / ".")
    assert_same(HEADS["classification"].from_pretrained(tmp_path), model)


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "albert"])
def test_other_architectures_and_a_partial_swap(tmp_path, architecture):
    sites = ffn_fqns(architecture)[-1:]
    model = trained(SETTINGS["shared"], "activations", architecture, target_modules=sites)
    lma_hf.save_delta(model, tmp_path)
    assert_same(lma_hf.load_delta_(tiny_model(architecture), tmp_path), model)


def test_base_of_a_shallow_student_is_that_student_before_the_swap(tmp_path):
    teacher = tiny_model(config=tiny_config("bert", 4))
    student = lma_hf.build_student(teacher, 2, activation=SETTINGS["shared"])
    lma_hf.save_delta(student, tmp_path)
    assert_same(lma_hf.load_delta_(lma_hf.build_student(teacher, 2, activation=None), tmp_path), student)
    with pytest.raises(SurgeryError, match="is not the base of the delta"):
        lma_hf.load_delta_(teacher, tmp_path)


def test_delta_is_small_and_says_what_it_belongs_to(tmp_path):
    lma_hf.save_delta(trained(SETTINGS["shared"], "activations"), tmp_path, base_model="someone/base")
    tensors = load_file(tmp_path / "delta.safetensors")
    learned = [value.numel() for name, value in tensors.items() if name.endswith(("slope", "intercept"))]
    assert sum(learned) == 3 * 2 * 8
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4096
    record = json.loads((tmp_path / "delta.json").read_text())
    assert record["base_model"] == "someone/base"
    assert record["versions"]["torch"] == torch.__version__
    assert record["ffn_activation"]["num_segments"] == 8
    assert len(record["base_sha256"]) == 64


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "classifier.bias"])
def test_any_other_base_is_refused_and_left_as_it_was(tmp_path, name):
    lma_hf.save_delta(trained(SETTINGS["shared"], "activations"), tmp_path)
    base = tiny_model()
    with torch.no_grad():
        base.get_parameter(name).view(-1)[-1] += 1e-6
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"is not the base of the delta.*hash to [0-9a-f]{12}"):
        lma_hf.load_delta_(base, tmp_path)
    assert set(base.state_dict()) == set(before)
    assert not hasattr(base.config, "ffn_activation")
    for other in (tiny_model().bfloat16(), tiny_model(config=tiny_config("bert", 2))):
        with pytest.raises(SurgeryError, match="is not the base"):
            lma_hf.load_delta_(other, tmp_path)


def test_misuse_is_one_clear_line(tmp_path):
    with pytest.raises(SurgeryError, match="holds no learnable activation that was swapped in"):
        lma_hf.save_delta(tiny_model(), tmp_path)
    with pytest.raises(SurgeryError, match=r"train is 'activations', but .* holds no learnable activation"):
        lma_hf.train_only_(tiny_model(), "activations")
    with pytest.raises(SurgeryError, match="train is 'heads', allowed are all, activations"):
        lma_hf.train_only_(tiny_model(), "heads")
    with pytest.raises(SurgeryError, match=r"require grad but train='activations' leaves them out"):
        lma_hf.save_delta(trained(SETTINGS["shared"], "activations+head"), tmp_path)
    with pytest.raises(SurgeryError, match="holds no delta that can be read"):
        lma_hf.load_delta_(tiny_model(), tmp_path / "nowhere")
    lma_hf.save_delta(trained(SETTINGS["shared"], "activations"), tmp_path)
    other = tiny_model()
    lma_hf.swap_activations_(other, lma_hf.LMAConfig(num_segments=4))
    with pytest.raises(SurgeryError, match="swapped in another way"):
        lma_hf.load_delta_(other, tmp_path)
    (tmp_path / "delta.safetensors").write_bytes(b"not tensors")
    with pytest.raises(SurgeryError, match="holds no delta that can be read"):
        lma_hf.load_delta_(tiny_model(), tmp_path)


@pytest.mark.parametrize("train", TRAIN)
def test_what_trains_is_what_was_named(train):
    model = tiny_model()
    lma_hf.swap_activations_(model, SETTINGS["shared"])
    names = set(trained_parameters(model, train))
    activations = {name for name in names if name.endswith(("slope", "intercept"))}
    assert len(activations) == 2 * 3
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    head = {"classifier.weight", "classifier.bias"}
    rest = {"activations": set(), "activations+bias": biases, "activations+head": head}[train]
    assert names == activations | rest
    assert lma_hf.train_only_(model, train) == sum(model.get_parameter(name).numel() for name in names)


def test_backward_computes_no_gradient_that_nobody_needs():
    model = tiny_model()
    lma_hf.swap_activations_(model, SETTINGS["shared"])
    lma_hf.train_only_(model, "activations")
    loss = model(**padded_batch(model, [9, 5, 12]), labels=torch.tensor([0, 1, 0])).loss
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    products = sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
    # to each of the later layers' inputs: 4 maps of the attention, 2 of the FFN; of the first layer only the last
    assert products <= 2 * 6 + 1 + 2
    grads = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert grads == set(trained_parameters(model, "activations"))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model()
        lma_hf.swap_activations_(model, SETTINGS["shared"])
        lma_hf.train_only_(model, "activations")
        if checkpointing:
            # older releases of transformers 5 know the second name only
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": use_reentrant})
        model.train()(**padded_batch(model, [9, 5, 12]), labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
