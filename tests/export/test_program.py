"""torch.export programs: shapes, operators, and that the model itself stays as it was."""

import copy

import pytest
import torch
from export.students import NAMES, StubTokenizer, make_student, with_types
from helpers import padded_batch

import lma_hf
from lma_hf.errors import ExportError
from lma_hf.export.folder import PROGRAM, export_model
from lma_hf.export.plain import ExportableLayerNorm, ExportableLMA
from lma_hf.export.program import exportable, input_names, to_program
from lma_hf.surgery.fold import fold_


@pytest.fixture(scope="module")
def program(student, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("program") / "torch"
    record = export_model(student, tiny_tokenizer, folder, format="torch", max_length=40)
    assert list(record["files"]) == [PROGRAM]
    return torch.export.load(folder / PROGRAM)


@pytest.mark.parametrize(("lengths", "pad_to"), [([1], None), ([1, 1, 1], None), ([12, 3, 1], None), ([5], 40)])
def test_any_batch_size_and_length(program, student, lengths, pad_to):
    batch = with_types(padded_batch(student, lengths, pad_to=pad_to), NAMES)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**batch), student(**batch).logits, rtol=0, atol=1e-4)


def test_operators_are_pytorchs_own(program):
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {target.namespace for target in targets if hasattr(target, "namespace")} == {"aten"}
    assert torch.ops.aten.bucketize.Tensor not in targets


def test_model_is_not_changed(student):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modules = {fqn: type(module) for fqn, module in student.named_modules()}
    student.train()
    to_program(exportable(student), NAMES, 40)
    assert student.training
    student.eval()
    assert {fqn: type(module) for fqn, module in student.named_modules()} == modules
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_copy_in_training_mode_and_half_precision_is_exported_in_eval_mode_and_float32(student):
    copied = exportable(copy.deepcopy(student).to(torch.bfloat16).train())
    assert not any(module.training for module in copied.modules())
    assert {value.dtype for value in copied.parameters()} == {torch.float32}
    assert sum(isinstance(module, ExportableLMA) for module in copied.modules()) == 3


@pytest.mark.parametrize("per_channel", [False, True])
def test_folded_model_is_exported_as_the_model_it_was(per_channel):
    model = make_student(activation=lma_hf.LMAConfig(init="fit", continuous=True, per_channel=per_channel))
    batch = with_types(padded_batch(model, [9, 5]), NAMES)
    folded = copy.deepcopy(model)
    fold_(folded)
    with torch.no_grad():
        expected = exportable(model)(**batch).logits
        assert torch.equal(exportable(folded)(**batch).logits, expected)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)


def test_model_that_cannot_be_traced_is_one_line(student):
    model = make_student()
    model.classifier.forward = lambda x: x * float(x.sum())
    with pytest.raises(ExportError, match="BertForSequenceClassification cannot be exported: ") as caught:
        to_program(exportable(model), NAMES, 40)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [["pixel_values"], ["input_ids"], []])
def test_inputs_of_other_models_are_refused(student, names):
    with pytest.raises(ExportError, match="only text models"):
        input_names(student, StubTokenizer(names))


@pytest.mark.parametrize("shape", [6, (5, 6)])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, False)])
def test_layer_norm_in_plain_operators(shape, affine, bias):
    torch.manual_seed(0)
    module = torch.nn.LayerNorm(shape, eps=1e-3, elementwise_affine=affine, bias=bias, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 5, 6, dtype=torch.float64) * 3 + 2
    torch.testing.assert_close(ExportableLayerNorm(module)(x), module(x), rtol=1e-12, atol=1e-12)
