"""ONNX files: shapes, architectures, activations, values at knots and extremes, operators."""

import json
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.students import NAMES, ManyActivations, StubTokenizer, difference, make_student, with_types
from helpers import padded_batch
from transformers import AutoConfig, AutoTokenizer

import lma_hf
from lma_hf.errors import ExportError
from lma_hf.export.folder import ONNX, QUANTIZED, export_model
from lma_hf.export.onnx import check_graph, save_onnx
from lma_hf.export.program import exportable, to_program

WITHOUT_TYPES = NAMES[:2]
SHAPES = [([1], None), ([7], None), ([1, 1, 1], None), ([12, 3, 1], None), ([5, 9], 33), ([40], None)]


def test_folder_holds_what_other_loaders_need(exported, student, tiny_tokenizer):
    files = {file.name for file in exported.iterdir()}
    assert files >= {ONNX, QUANTIZED, "export.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not list(exported.parent.glob(".*"))
    assert AutoConfig.from_pretrained(exported).num_labels == student.config.num_labels
    text = "a good film"
    assert AutoTokenizer.from_pretrained(exported)(text).input_ids == tiny_tokenizer(text).input_ids


def test_record(exported):
    record = json.loads((exported / "export.json").read_text())
    assert record["tolerance"] == 1e-4
    assert set(record["files"]) == {ONNX, QUANTIZED}
    for name, values in record["files"].items():
        assert values["size_mb"] == (exported / name).stat().st_size / 1e6
        (opset,) = onnx.load(exported / name).opset_import
        assert values["opset"] == opset.version == {ONNX: 18, QUANTIZED: 23}[name]
    assert record["files"][ONNX]["max_logit_difference"] <= 1e-4
    assert record["files"][ONNX]["same_predictions"] == record["files"][ONNX]["num_rows"]


@pytest.mark.parametrize(("lengths", "pad_to"), SHAPES)
def test_any_batch_size_and_length(exported, student, lengths, pad_to):
    session = onnxruntime.InferenceSession(exported / ONNX)
    batch = with_types(padded_batch(student, lengths, pad_to=pad_to), NAMES)
    assert difference(session, student, batch) <= 1e-4


def test_inputs_are_named_and_dynamic(exported):
    session = onnxruntime.InferenceSession(exported / ONNX)
    assert {entry.name: entry.shape for entry in session.get_inputs()} == {
        name: ["batch", "sequence"] for name in NAMES
    }
    assert [(entry.name, entry.shape[0]) for entry in session.get_outputs()] == [("logits", "batch")]


@pytest.mark.parametrize("name", [ONNX, QUANTIZED])
def test_graph_has_standard_operators_and_an_arithmetic_segment_index(exported, name):
    check_graph(exported / name)
    model = onnx.load(exported / name)
    operators = [node.op_type for node in model.graph.node]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert {"Sub", "Mul", "Clip", "Cast", "GatherElements"} <= set(operators)
    # no search among the knots: two look-ups in each of three layers, and nothing that grows with the segments
    assert operators.count("GatherElements") == 6
    assert not {"Bucketize", "Less", "LessOrEqual", "ArgMax", "CumSum", "Loop", "If"} & set(operators)


def test_foreign_operator_is_refused(exported, tmp_path):
    model = onnx.load(exported / ONNX)
    model.graph.node[0].domain = "com.example"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"com\.example::"):
        check_graph(tmp_path / "model.onnx")
    model.graph.node[0].domain = ""
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"17.*allowed are standard operators of opset 18"):
        check_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("architecture", "names", "activation"),
    [
        pytest.param("roberta", WITHOUT_TYPES, lma_hf.LMAConfig(init="fit", continuous=True), marks=pytest.mark.slow),
        ("distilbert", WITHOUT_TYPES, "swish"),
        pytest.param("electra", NAMES, "aplu", marks=pytest.mark.slow),
        pytest.param("albert", NAMES, "prelu", marks=pytest.mark.extended),
        pytest.param("mpnet", WITHOUT_TYPES, "gelu", marks=pytest.mark.slow),
    ],
)
def test_architectures_and_baselines(tmp_path, architecture, names, activation):
    model = make_student(architecture, activation, num_layers=1)
    tokenizer = StubTokenizer(names, model.config.pad_token_id)
    export_model(model, tokenizer, tmp_path / "out", max_length=30)
    session = onnxruntime.InferenceSession(tmp_path / "out" / ONNX)
    for lengths, pad_to in (([1], None), ([12, 3, 1], None), ([5, 9], 30)):
        assert difference(session, model, with_types(padded_batch(model, lengths, pad_to=pad_to), names)) <= 1e-4


CHANNELS = 3
VARIANTS = [
    lma_hf.LMAConfig(num_segments=k, statistics=statistics, continuous=continuous, per_channel=per_channel)
    for k, statistics in ((2, "running"), (7, "frozen"), (8, "batch"), (64, "running"))
    for continuous, per_channel in product((False, True), repeat=2)
]


def random_lma(settings, generator):
    module = lma_hf.LMA.from_settings(settings, CHANNELS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
        module.running_mean.normal_(generator=generator)
        module.running_std.uniform_(0.3, 2, generator=generator)
    module.num_batches_tracked.fill_(1)
    return module.eval()


def interesting_values(modules):
    """Every knot of every module with its neighbours in float32, and extremes; of shape (n, CHANNELS)."""
    knots = []
    for module in modules:
        lower, step = module.bounds(module.running_mean, module.running_std)
        index = torch.arange(module.settings.num_segments + 1)[:, None]
        knots.append((lower + step * index).expand(-1, CHANNELS))
    knots = torch.cat(knots).detach()
    above, below = (torch.nextafter(knots, torch.tensor(end)) for end in (torch.inf, -torch.inf))
    extremes = torch.tensor([0.0, -0.0, 1e-38, 1e4, -1e4, 1e30, -1e30])[:, None].expand(-1, CHANNELS)
    return torch.cat([knots, above, below, extremes, torch.randn(500, CHANNELS) * 4])


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """(model, path of its ONNX file)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    modules = [random_lma(settings, generator) for settings in VARIANTS]
    model = ManyActivations(interesting_values(modules), modules)
    path = tmp_path_factory.mktemp("variants") / "model.onnx"
    save_onnx(to_program(exportable(model), WITHOUT_TYPES), WITHOUT_TYPES, path)
    return model, path


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_every_variant_at_knots_and_extremes(variants, kernel):
    model, path = variants
    ids = torch.arange(len(model.values))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), lma_hf.use_kernel(kernel):
        expected = model(**inputs).logits.numpy()
    session = onnxruntime.InferenceSession(path)
    actual = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    assert expected.shape == (1, len(model.values), CHANNELS * len(VARIANTS))
    # a value in the wrong segment would be off by the jump between two random lines
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
