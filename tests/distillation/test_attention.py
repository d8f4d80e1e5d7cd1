import pytest
import torch
from helpers import ARCHITECTURES, padded_batch, tiny_model
from transformers import GPT2Config

from lma_hf import build_student
from lma_hf.distillation.attention import AttentionObjective, AttentionTap
from lma_hf.distillation.losses import relation_loss, relation_scores
from lma_hf.errors import ConfigError

LENGTHS = [7, 4, 9]
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=0)


def heard(model, batch):
    tap = AttentionTap(model, "the model")
    tap.listen()
    model(**batch)
    return tap.take()


def losses(student, teacher, batch, **arguments):
    objective = AttentionObjective(student, teacher, [0, 2], **arguments)
    objective.listen()
    student(**batch)
    teacher(**batch)
    return objective.parts(batch["attention_mask"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_queries_and_keys_make_the_models_own_attention(architecture):
    """MPNet adds relative positions to its scores, so there only up to these."""
    model = tiny_model(architecture)
    batch = padded_batch(model, LENGTHS)
    queries, keys, values = heard(model, batch)
    assert len(queries) == len(keys) == len(values) == 3
    if architecture == "mpnet":
        model.base_model.encoder.relative_attention_bias.weight.data.zero_()
        queries, keys, values = heard(model, batch)
    eager = tiny_model(architecture)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    expected = eager(**batch, output_attentions=True).attentions
    padding = (batch["attention_mask"] == 0)[:, None, None, :]
    for query, key, attention in zip(queries, keys, expected, strict=True):
        scores = relation_scores(query, key, model.config.num_attention_heads).masked_fill(padding, -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), attention, rtol=1e-4, atol=1e-5)


def test_parts_of_a_copy_are_zero_and_of_another_model_are_not():
    teacher = tiny_model()
    batch = padded_batch(teacher, LENGTHS)
    for kind in ("mse", "kl"):
        copy = losses(build_student(teacher, 2, [0, 2], activation=None), teacher, batch, attention=kind)
        # layer 0 of the copy sees what layer 0 of the teacher sees, layer 1 something else than layer 2
        assert copy["attention"] > 1e-3
    same = AttentionObjective(teacher, teacher, [0, 1, 2], attention="kl", relation=True)
    same.listen()
    teacher(**batch)
    # one model in both roles: each tap hears the one pass
    parts = same.parts(batch["attention_mask"])
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {"attention": 0, "relation": 0}, abs=1e-6
    )


def test_relation_is_the_sum_over_queries_keys_and_values_of_the_last_layer():
    teacher = tiny_model()
    student = build_student(teacher, 2, [0, 2], activation=None, hidden_size=8, num_attention_heads=1)
    batch = padded_batch(teacher, LENGTHS)
    parts = losses(student, teacher, batch, relation=True, relation_heads=4, relation_layer=1)
    expected = sum(
        relation_loss(
            relation_scores(ours[-1], ours[-1], 4), relation_scores(theirs[1], theirs[1], 4), batch["attention_mask"]
        )
        for ours, theirs in zip(heard(student, batch), heard(teacher, batch), strict=True)
    )
    torch.testing.assert_close(parts, {"relation": expected})
    parts["relation"].backward()
    gradients = [parameter.grad for name, parameter in student.named_parameters() if "layer.1.attention.self" in name]
    assert len(gradients) == 6
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_gradient_checkpointing_changes_no_gradient():
    teacher = tiny_model()
    batch, gradients = padded_batch(teacher, LENGTHS), []
    for checkpointing in (False, True):
        student = build_student(teacher, 2, [0, 2], activation="relu").train()
        if checkpointing:
            # older releases of transformers 5 know the second name only
            enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
            enable()
        parts = losses(student, teacher.eval(), batch, attention="mse", relation=True)
        sum(parts.values()).backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 20
    torch.testing.assert_close(gradients[1], gradients[0])


def test_nothing_is_kept_between_listening():
    model = tiny_model()
    batch = padded_batch(model, LENGTHS)
    tap = AttentionTap(model, "the model")
    model(**batch)
    assert tap.heard is None
    tap.listen()
    model(**batch)
    assert len(tap.take()[0]) == 3
    model(**batch)
    assert tap.heard is None


def test_models_without_the_maps_are_an_error():
    with pytest.raises(ConfigError, match=r"the teacher is a GPT2\w+.*BERT, RoBERTa"):
        AttentionTap(tiny_model(config=GPT2), "the teacher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "mse"}, "the student has 1 attention heads and the teacher 2.*relation_loss_weight"),
        (
            {"relation": True, "relation_heads": 3},
            "relation_heads is 3, which does not divide the 8 units of the student",
        ),
        ({"relation": True, "relation_layer": 3}, "relation_layer is 3, the teacher's layers are 0 to 2"),
    ],
)
def test_heads_that_do_not_fit_are_errors(arguments, message):
    teacher = tiny_model()
    student = build_student(teacher, 2, [0, 2], activation=None, hidden_size=8, num_attention_heads=1)
    with pytest.raises(ConfigError, match=message):
        AttentionObjective(student, teacher, [0, 2], **arguments)


def test_padding_does_not_change_the_parts():
    teacher = tiny_model()
    student = build_student(teacher, 2, [0, 2], activation=None)
    parts = [
        losses(student, teacher, padded_batch(teacher, LENGTHS, pad_to=pad_to), attention="mse", relation=True)
        for pad_to in (None, 20)
    ]
    torch.testing.assert_close(parts[1], parts[0], rtol=1e-4, atol=1e-5)
