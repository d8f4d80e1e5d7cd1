import pytest
import torch
from helpers import ARCHITECTURES, padded_batch, tiny_model

from lma_hf import build_student
from lma_hf.distillation.theseus import ModuleReplacement
from lma_hf.errors import ConfigError
from lma_hf.surgery.targets import layer_lists

LAYER_MAP = [1, 3]
WITH_OWN_LAYERS = [name for name in ARCHITECTURES if name != "albert"]


def layers_of(model):
    (name,) = layer_lists(model)
    return list(model.base_model.get_submodule(name))


def trio(architecture="bert"):
    """(teacher of 4 layers, student of 2 in training mode and without dropout, their replacement)"""
    teacher = tiny_model(architecture, num_layers=4).requires_grad_(False)
    student = build_student(teacher, 2, LAYER_MAP, activation="relu").train()
    return teacher, student, ModuleReplacement(layers_of(student), layers_of(teacher), LAYER_MAP)


@pytest.mark.parametrize("architecture", WITH_OWN_LAYERS)
def test_nothing_replaced_is_the_teacher_and_all_replaced_the_student(architecture):
    teacher, student, replacement = trio(architecture)
    batch = padded_batch(teacher, [7, 4, 9])
    own = student.eval()(**batch).logits
    replacement.draw(0.0)
    # the teacher's layers between the student's embeddings and head, which are copies of the teacher's
    torch.testing.assert_close(student.train()(**batch).logits, teacher(**batch).logits)
    assert not torch.allclose(own, teacher(**batch).logits, atol=1e-2)
    torch.testing.assert_close(student.eval()(**batch).logits, own, rtol=0, atol=0)
    replacement.draw(1.0)
    torch.testing.assert_close(student.train()(**batch).logits, own)


def test_mixed_is_the_chain_of_the_chosen_layers():
    teacher, student, replacement = trio()
    batch = padded_batch(teacher, [7, 4, 9])
    replacement.used = [True, False]
    mixed = build_student(teacher, 3, [1, 2, 3], activation=None).train()
    # student layer 0, then teacher layers 2 and 3
    layers_of(mixed)[0].load_state_dict(layers_of(student)[0].state_dict())
    layers_of(mixed)[0].intermediate.intermediate_act_fn = torch.nn.ReLU()
    torch.testing.assert_close(student(**batch).logits, mixed(**batch).logits)


def test_gradients_reach_the_used_layers_through_the_teachers_and_are_zero_elsewhere():
    teacher, student, replacement = trio()
    batch = padded_batch(teacher, [7, 4, 9])
    replacement.used = [True, False]
    student(**batch).logits.square().sum().backward()
    used, unused = layers_of(student)
    assert all(parameter.grad.any() for name, parameter in used.named_parameters() if "key.bias" not in name)
    assert all((parameter.grad == 0).all() for parameter in unused.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_rate_is_the_share_of_student_layers():
    _, _, replacement = trio()
    torch.manual_seed(0)
    draws = []
    for _ in range(1000):
        replacement.draw(0.3)
        draws.append(replacement.used)
    assert torch.tensor(draws).float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.05)


@pytest.mark.parametrize("layer_map", [[1, 2], [2, 1], [3, 3], [0, 1]])
def test_layers_that_do_not_make_up_the_teacher_are_an_error(layer_map):
    teacher = tiny_model(num_layers=4)
    student = build_student(teacher, 2, layer_map, activation=None)
    with pytest.raises(ConfigError, match=r"layer_map uniform"):
        ModuleReplacement(layers_of(student), layers_of(teacher), layer_map)


def test_nothing_of_it_is_saved(tmp_path):
    teacher, student, _ = trio()
    names = set(student.state_dict())
    student.save_pretrained(tmp_path)
    assert set(type(student).from_pretrained(tmp_path).state_dict()) == names
    assert len(names) < len(teacher.state_dict())
