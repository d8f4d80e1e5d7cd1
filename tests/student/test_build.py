import pytest
import torch
from helpers import (
    ARCHITECTURES,
    FFN,
    FFN_WIDTH,
    HEADS,
    HIDDEN,
    LAYERS,
    ffn_fqns,
    logits_of,
    padded_batch,
    tiny_config,
    tiny_model,
)
from transformers import AutoConfig

from lma_hf import LMA, BaselineConfig, LMAConfig, build_student, calibrate_, swap_activations_
from lma_hf.errors import StudentError
from lma_hf.student.layer_map import resolve_layer_map

PRUNED = 12
NAMES = {0: "bad", 1: "fine", 2: "great"}


def teacher_of(architecture, head="classification", num_layers=6):
    config = tiny_config(architecture, num_layers, id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    config.problem_type = "single_label_classification"
    return tiny_model(head=head, config=config)


def batches_of(model):
    return [padded_batch(model, lengths, seed=seed) for seed, lengths in enumerate([[9, 4], [12, 3, 5]])]


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, model.config.to_dict()


def assert_untouched(model, before):
    state, config = before
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.config.to_dict() == config


def origin(architecture, name, layers):
    """Name in the teacher of a student's tensor, by the layer map."""
    for index, layer in enumerate(layers):
        prefix = LAYERS[architecture].format(index) + "."
        if architecture != "albert" and name.startswith(prefix):
            return LAYERS[architecture].format(layer) + "." + name.removeprefix(prefix)
    return name


@torch.no_grad()
def importance(model, architecture, batches):
    """Fqn of the down-projection -> mean |a_j| over real tokens times mean |W[:, j]|, from a separate hook."""
    scores = {}
    for fqn in ffn_fqns(architecture, "down", 6):
        down, used = model.get_submodule(fqn), []
        handle = down.register_forward_pre_hook(lambda module, args, used=used: used.append(args[0]))
        for batch in batches:
            mask, seen = batch["attention_mask"].bool(), len(used)
            model(**batch)
            used[seen:] = [values[mask] for values in used[seen:]]
        handle.remove()
        scores[fqn] = torch.cat(used).double().abs().mean(0) * down.weight.double().abs().mean(0)
    return scores


@pytest.mark.parametrize("layer_map", ["uniform", "first", [4, 0, 4]], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_is_copied_from_the_named_layer(architecture, layer_map):
    teacher = teacher_of(architecture)
    before = snapshot(teacher)
    student = build_student(teacher, 3, layer_map, activation=BaselineConfig("relu"))
    layers = resolve_layer_map(layer_map, 3, 6)
    state = student.state_dict()
    assert student.config.num_hidden_layers == 3
    assert len(state) < len(before[0]) or architecture == "albert"
    for name, value in state.items():
        assert torch.equal(value, before[0][origin(architecture, name, layers)]), name
    assert_untouched(teacher, before)
    assert not student.training


@pytest.mark.parametrize(
    ("architecture", "head"), [(architecture, head) for architecture in ARCHITECTURES for head in HEADS]
)
def test_full_depth_student_with_the_old_activation_is_the_teacher(architecture, head):
    teacher = teacher_of(architecture, head, 3)
    student = build_student(teacher, 3, activation=None)
    batch = batches_of(teacher)[0]
    assert torch.equal(logits_of(student, batch), logits_of(teacher, batch))
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_and_problem_type_survive_save_and_reload(architecture, tmp_path):
    teacher = teacher_of(architecture)
    batches = batches_of(teacher)
    student = build_student(
        teacher,
        2,
        activation=LMAConfig(init="fit", per_channel=True),
        intermediate_size=PRUNED,
        calibration_batches=batches,
    )
    student.save_pretrained(tmp_path)
    loaded = HEADS["classification"].from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == NAMES
    assert loaded.config.problem_type == "single_label_classification"
    assert torch.equal(logits_of(loaded, batches[0]), logits_of(student, batches[0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_narrow_ffn_keeps_the_most_important_units(architecture):
    teacher = teacher_of(architecture).train()
    before = snapshot(teacher)
    batches = batches_of(teacher)
    labelled = [{**batch, "labels": torch.zeros(len(batch["input_ids"]), dtype=torch.long)} for batch in batches]
    student = build_student(
        teacher, 2, [4, 1], activation=None, intermediate_size=PRUNED, calibration_batches=iter(labelled)
    )
    assert teacher.training
    assert_untouched(teacher, before)
    scores = importance(teacher.eval(), architecture, batches)
    parts = FFN[architecture]
    for index, layer in [(0, 0)] if architecture == "albert" else [(0, 4), (1, 1)]:
        ours, theirs = (
            model.get_submodule(LAYERS[architecture].format(i)) for model, i in ((student, index), (teacher, layer))
        )
        kept = scores[f"{LAYERS[architecture].format(layer)}.{parts['down']}"].argsort(descending=True)[:PRUNED]
        kept = kept.sort().values
        up, down = ours.get_submodule(parts["up"]), ours.get_submodule(parts["down"])
        assert up.weight.shape == (PRUNED, HIDDEN)
        assert torch.equal(up.weight, theirs.get_submodule(parts["up"]).weight[kept])
        assert torch.equal(up.bias, theirs.get_submodule(parts["up"]).bias[kept])
        assert torch.equal(down.weight, theirs.get_submodule(parts["down"]).weight[:, kept])
        assert torch.equal(down.bias, theirs.get_submodule(parts["down"]).bias)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pruning_dead_units_changes_nothing(architecture):
    teacher = teacher_of(architecture, num_layers=2)
    generator = torch.Generator().manual_seed(0)
    for fqn in ffn_fqns(architecture, "down", 2):
        dead = torch.randperm(FFN_WIDTH, generator=generator)[PRUNED:]
        teacher.get_submodule(fqn).weight.data[:, dead] = 0
    batches = batches_of(teacher)
    student = build_student(teacher, 2, activation=None, intermediate_size=PRUNED, calibration_batches=batches)
    for batch in batches:
        torch.testing.assert_close(logits_of(student, batch), logits_of(teacher, batch), rtol=0, atol=1e-6)


def test_padding_does_not_change_which_units_are_kept():
    teacher = teacher_of("bert")
    students = [
        build_student(
            teacher,
            2,
            activation=None,
            intermediate_size=PRUNED,
            calibration_batches=[padded_batch(teacher, [3, 5], pad_to=width)],
        )
        for width in (5, 30)
    ]
    torch.testing.assert_close(students[0].state_dict(), students[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [{"hidden_size": 24}, {"num_attention_heads": 4}, {"hidden_size": HIDDEN}], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
def test_other_width_or_heads_start_from_fresh_weights(architecture, size):
    teacher = teacher_of(architecture)
    before = snapshot(teacher)
    student = build_student(teacher, 2, activation=None, **size)
    assert {key: getattr(student.config, key) for key in size} == size
    assert student.config.id2label == NAMES
    matrices = [name for name, value in student.state_dict().items() if value.dim() == 2 and "embeddings" not in name]
    assert all(
        value.shape != before[0][name].shape or not torch.equal(value, before[0][name])
        for name, value in student.state_dict().items()
        if name in matrices
    )
    assert logits_of(student, batches_of(teacher)[0]).isfinite().all()
    assert_untouched(teacher, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lma_teacher_gives_a_fresh_lma_student(architecture):
    teacher = teacher_of(architecture)
    batches = batches_of(teacher)
    swap_activations_(teacher, LMAConfig(4, init="fit"))
    calibrate_(teacher, batches)
    before = snapshot(teacher)
    student = build_student(teacher, 2, activation=LMAConfig(8), calibration_batches=batches)
    placed = [module for module in student.modules() if isinstance(module, LMA)]
    assert len(placed) == (1 if architecture == "albert" else 2)
    assert all(module.slope.shape == (8,) and module.num_batches_tracked > 0 for module in placed)
    assert_untouched(teacher, before)
    plain = build_student(teacher, 2, activation=None)
    assert not any(isinstance(module, LMA) for module in plain.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 7}, "num_layers is 7, allowed are 1 to 6"),
        ({"layer_map": [0, 9]}, "layer 9, the teacher's layers are 0 to 5"),
        (
            {"num_attention_heads": 3},
            "16 is not divisible by num_attention_heads 3; allowed for it are 1, 2, 4, 8, 16",
        ),
        ({"hidden_size": 15}, "15 is not divisible by num_attention_heads 2; allowed for it are 1, 3, 5, 15"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"intermediate_size": PRUNED}, "needs calibration_batches"),
        ({"intermediate_size": PRUNED, "calibration_batches": iter([])}, "needs calibration_batches"),
        ({"intermediate_size": FFN_WIDTH + 1}, "intermediate_size is 33, allowed are 1 to 32"),
        ({"intermediate_size": 0}, "intermediate_size is 0, allowed are whole numbers from 1"),
        ({"intermediate_size": "12"}, "intermediate_size is '12'"),
    ],
)
def test_impossible_requests_name_what_is_allowed(arguments, message):
    with pytest.raises(StudentError, match=message):
        build_student(teacher_of("bert"), **{"num_layers": 2, **arguments})


def test_without_an_activation_a_relu_teacher_gives_a_relu_student():
    teacher = tiny_model()
    swap_activations_(teacher, "relu")
    batch = padded_batch(teacher, [9, 4])
    student = build_student(teacher, 3, activation=None)
    assert torch.equal(logits_of(student, batch), logits_of(teacher, batch))
    assert student.config.hidden_act == "relu"


def model_of(name, **sizes):
    """A random classifier of six layers."""
    sizes = {"num_hidden_layers": 6, "num_attention_heads": 2, "hidden_size": HIDDEN, "pad_token_id": 0} | sizes
    config = AutoConfig.for_model(name, vocab_size=50, max_position_embeddings=40, **sizes)
    return tiny_model(config=config)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_every_layer_keeps_its_kind(name, tmp_path):
    kinds = ["full_attention", "sliding_attention"] * 3
    window = {"layer_types": kinds, "sliding_window": 4, "use_sliding_window": True}
    teacher = model_of(name, intermediate_size=FFN_WIDTH, num_key_value_heads=2, head_dim=8, **window)
    student = build_student(teacher, 3, [0, 1, 3], activation=None)
    assert student.config.layer_types == [kinds[layer] for layer in (0, 1, 3)]
    assert teacher.config.layer_types == kinds
    student.save_pretrained(tmp_path)
    loaded = HEADS["classification"].from_pretrained(tmp_path).eval()
    batch = batches_of(teacher)[0]
    assert torch.equal(logits_of(loaded, batch), logits_of(student, batch))


@pytest.mark.parametrize("settings", [None, LMAConfig()], ids=["gelu", "lma"])
def test_gpt2_student(settings):
    teacher = model_of("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    student = build_student(teacher, 2, [4, 1], activation=settings)
    assert student.config.num_hidden_layers == 2
    for ours, theirs in zip(student.transformer.h, (4, 1), strict=True):
        assert torch.equal(ours.mlp.c_fc.weight, teacher.transformer.h[theirs].mlp.c_fc.weight)


def test_pruning_dead_units_of_gpt2_changes_nothing():
    teacher = model_of("gpt2", num_hidden_layers=2)
    for layer in teacher.transformer.h:
        layer.mlp.c_proj.weight.data[::2] = 0
    batches = batches_of(teacher)
    student = build_student(teacher, 2, activation=None, intermediate_size=2 * HIDDEN, calibration_batches=batches)
    assert student.transformer.h[0].mlp.c_fc.weight.shape == (HIDDEN, 2 * HIDDEN)
    for batch in batches:
        torch.testing.assert_close(logits_of(student, batch), logits_of(teacher, batch), rtol=0, atol=1e-5)
    narrow = build_student(teacher, 2, activation=None, hidden_size=8)
    assert narrow.transformer.h[0].mlp.c_fc.weight.shape == (8, 32)


def test_layers_that_do_not_fit_each_other_are_named():
    teacher = model_of("modernbert", intermediate_size=FFN_WIDTH, cls_token_id=1, sep_token_id=2)
    with pytest.raises(
        StudentError, match=r"layer 1 of the ModernBert\w+ does not fit as layer 0.*attn_norm.*layer_map"
    ):
        build_student(teacher, 3, activation=None)
    student = build_student(teacher, 3, [0, 2, 3], activation=None)
    assert student.config.layer_types == [teacher.config.layer_types[layer] for layer in (0, 2, 3)]
