"""The verification sees a wrong file, and a wrong file is not kept."""

import copy
import shutil

import numpy as np
import onnx
import pytest
import torch
from export.students import NAMES, ManyActivations
from onnx import numpy_helper
from transformers import AutoConfig, AutoModelForSequenceClassification

import lma_hf
from lma_hf.errors import ConfigError, ExportError, OutputDirError
from lma_hf.export import folder as folder_module
from lma_hf.export import verify
from lma_hf.export.folder import ONNX, PROGRAM, QUANTIZED, export_model
from lma_hf.export.plain import ExportableLMA


def corrupt(path, change):
    """Apply `change` to an array in an ONNX file: the largest one that a GatherElements looks up in."""
    model = onnx.load(path)
    tables = {node.input[0] for node in model.graph.node if node.op_type == "GatherElements"}
    found = [entry for entry in model.graph.initializer if entry.name in tables]
    table = max(found, key=lambda entry: np.prod(entry.dims))
    values = numpy_helper.to_array(table).copy()
    change(values)
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, path)


def shift(values):
    values += 0.01


def not_a_number(values):
    values[:] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [(shift, "is not the model: on .* logits differ by"), (not_a_number, r"does not run|gives logits that are not")],
)
def test_wrong_constant_is_seen_and_nothing_is_left(
    student, tiny_tokenizer, exported, tmp_path, monkeypatch, change, message
):
    def save_wrong(program, names, path, max_length):
        shutil.copy(exported / ONNX, path)
        corrupt(path, change)

    monkeypatch.setattr(folder_module, "save_onnx", save_wrong)
    with pytest.raises(ExportError, match=message) as caught:
        export_model(student, tiny_tokenizer, tmp_path / "out", max_length=40)
    assert caught.value.exit_code == 1
    assert "nothing was kept" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_model_with_nan_is_refused(student, tiny_tokenizer, tmp_path):
    broken = copy.deepcopy(student)
    broken.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(ExportError, match="BertForSequenceClassification gives logits that are not finite"):
        export_model(broken, tiny_tokenizer, tmp_path / "out", max_length=40)
    assert list(tmp_path.iterdir()) == []


def test_model_that_wants_other_inputs_is_refused(tiny_tokenizer, tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 70}
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bart", **sizes, **heads, vocab_size=50)
    )
    with pytest.raises(ExportError, match=r"BartForSequenceClassification does not take random tokens.*<eos>"):
        export_model(model, tiny_tokenizer, tmp_path / "out", max_length=40)
    assert list(tmp_path.iterdir()) == []


def test_file_that_does_not_run_is_seen(student, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_write_program", lambda p, n, folder, *_: (folder / PROGRAM).write_text("no"))
    with pytest.raises(ExportError, match=r"model\.pt2 does not run: .*nothing was kept"):
        export_model(student, tiny_tokenizer, tmp_path / "out", format="torch", max_length=40)
    assert list(tmp_path.iterdir()) == []


def test_probes_have_every_kind_of_batch():
    batches = verify.probe_batches(NAMES, 50, pad_token_id=7, max_length=20)
    shapes = {tuple(batch["input_ids"].shape) for batch in batches}
    assert {(1, 1), (5, 1), (1, 20), (3, 20)} <= shapes
    padded = [batch for batch in batches if (batch["attention_mask"] == 0).any()]
    assert padded
    for batch in padded:
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()
        assert batch["attention_mask"].sum(1).min() >= 1
        assert not batch["token_type_ids"][batch["attention_mask"] == 0].any()
    assert all(batch["input_ids"].max() < 50 for batch in batches)


def test_comparison_counts_predictions_and_takes_the_largest_difference():
    expected = [np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 0.5]])]
    answers = iter([np.array([[0.0, 1.0], [2.0, 1.25]]), np.array([[0.5, 0.25]])])
    outcome = verify.compare(expected, lambda batch: next(answers), [None, None])
    assert outcome == verify.Verification(3, 0.5, 2)
    with pytest.raises(ExportError, match=r"differ by 0\.5 at most, same prediction on 2; allowed are 1, all 3"):
        verify.check(outcome, "model.onnx", tolerance=1.0)
    one_output = verify.compare([np.ones((2, 1))], lambda batch: np.ones((2, 1)), [None])
    assert one_output == verify.Verification(2, 0.0, None)
    verify.check(one_output, "model.onnx")
    with pytest.raises(ExportError, match="not finite"):
        verify.check(verify.compare([np.ones((2, 1))], lambda batch: np.full((2, 1), np.nan), [None]), "model.onnx")


def test_int8_is_smaller_and_close(exported, student, tiny_tokenizer):
    batches = verify.probe_batches(NAMES, student.config.vocab_size, max_length=40)
    expected = verify.logits_of_model(student, batches)
    outcome = verify.compare(expected, verify.onnx_runner(exported / QUANTIZED, threads=1), batches)
    assert 0 < outcome.max_logit_difference < 0.1 * max(np.abs(logits).max() for logits in expected)
    kinds = {entry.data_type for entry in onnx.load(exported / QUANTIZED).graph.initializer if len(entry.dims) == 2}
    assert onnx.TensorProto.INT8 in kinds
    assert (exported / QUANTIZED).stat().st_size < (exported / ONNX).stat().st_size


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("num_segments", [2, 5])
def test_distance_to_the_nearest_jump(num_segments, per_channel):
    generator = torch.Generator().manual_seed(0)
    shape = (3,) if per_channel else ()
    slope, intercept = (torch.randn(*shape, num_segments, generator=generator) for _ in range(2))
    lower, step = -torch.rand(shape, generator=generator) - 1, torch.rand(shape, generator=generator) + 0.5
    x = torch.randn(2, 50, 3, generator=generator) * 3
    index = torch.arange(1, num_segments)
    knots = (lower[..., None] + step[..., None] * index).expand(3, -1)
    expected = (x[..., None] - knots).abs().amin(-1)
    found = ExportableLMA(slope, intercept, lower, step).distance_to_jump(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_pieces_that_meet_have_no_edge():
    module = lma_hf.LMA(continuous=True, per_channel=True, num_channels=3).eval()
    assert ExportableLMA.of(module).distance_to_jump(torch.randn(2, 5, 3)).isinf().all()
    relu = lma_hf.LMA().eval()  # hinged at 0
    relu.intercept.data[4:] = 0.5
    distance = ExportableLMA.of(relu).distance_to_jump(torch.tensor([[0.125, -0.25, 2.0]]))
    assert distance[0, :2].tolist() == [0.125, 0.25]
    assert distance[0, 2].isinf()


def test_rows_on_an_edge_are_those_where_rounding_decides():
    values = torch.tensor([[0.3], [1e-6], [-1e-4]])
    model = ManyActivations(
        values, [ExportableLMA(torch.tensor([0.0, 0]), torch.tensor([0.0, 1]), *torch.tensor([-1.0, 1]))]
    )
    ids = torch.tensor([[0, 0], [1, 0], [0, 1], [2, 0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])  # padding does not count
    (found,) = verify.rows_on_edge(model, [{"input_ids": ids, "attention_mask": mask}])
    assert found.tolist() == [False, True, False, False]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_a_small_difference_is_allowed_on_an_edge():
    expected, answer = [np.zeros((2, 2))], np.array([[1e-5, 0], [0.05, 0]])
    outcome = verify.compare(expected, lambda batch: answer, [None], [np.array([False, True])])
    assert outcome == verify.Verification(1, 1e-5, 1, 1, 0.05)
    verify.check(outcome, "model.onnx")
    wrong = verify.compare(expected, lambda batch: 10 * answer, [None], [np.array([False, True])])
    with pytest.raises(ExportError, match=r"on 1 more, where rounding decides, by 0\.5; allowed"):
        verify.check(wrong, "model.onnx")
    everything_on_edge = verify.compare(expected, lambda batch: answer, [None], [np.array([True, True])])
    assert everything_on_edge == verify.Verification(0, 0.0, 0, 2, 0.05)


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_exists_is_not_overwritten(student, tiny_tokenizer, tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("keep me")
    else:
        target.mkdir()
        (target / "notes").write_text("keep me")
    with pytest.raises(OutputDirError, match="is no empty folder"):
        export_model(student, tiny_tokenizer, target, max_length=40)
    kept = target if kind == "file" else target / "notes"
    assert kept.read_text() == "keep me"
    assert list(tmp_path.iterdir()) == [target]


def test_empty_folder_is_taken_and_a_folder_that_cannot_be_made_is_an_error(student, tiny_tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    export_model(student, tiny_tokenizer, tmp_path / "out", format="torch", max_length=40)
    assert (tmp_path / "out" / PROGRAM).is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputDirError, match="cannot be used"):
        export_model(student, tiny_tokenizer, tmp_path / "file" / "out", max_length=40, format="torch")


@pytest.mark.parametrize(("format", "quantize"), [("tflite", None), ("onnx", "int4"), ("torch", "int8")])
def test_unknown_formats_are_refused(student, tiny_tokenizer, tmp_path, format, quantize):
    with pytest.raises(ConfigError, match="allowed are onnx with quantize None, int8; torch with quantize None"):
        export_model(student, tiny_tokenizer, tmp_path, max_length=40, format=format, quantize=quantize)


def test_logits_of_model_leaves_the_mode_alone(student):
    batches = [{name: torch.ones(1, 2, dtype=torch.long) for name in NAMES}]
    student.train()
    first, second = (verify.logits_of_model(student, batches) for _ in range(2))
    assert student.training
    student.eval()
    assert np.array_equal(first[0], second[0])
