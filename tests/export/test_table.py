"""LMA as a table between two integer products, against the same computed in NumPy from the numbers in the file."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.students import NAMES, ManyActivations, make_student, with_types
from helpers import padded_batch
from onnx import numpy_helper

import lma_hf
from lma_hf.export.folder import QUANTIZED, export_model
from lma_hf.export.onnx import save_onnx
from lma_hf.export.program import exportable, to_program
from lma_hf.export.quantize import quantize_onnx
from lma_hf.export.table import REACH_SIGMAS, TableLMA
from lma_hf.modeling.activation_lma import LMA, FoldedLMA
from lma_hf.surgery.fold import fold_

WITHOUT_TYPES = NAMES[:2]


@pytest.fixture(scope="module")
def shared(tiny_tokenizer):
    activation = lma_hf.LMAConfig(init="fit", statistics="running")
    return make_student(activation=activation, vocab_size=len(tiny_tokenizer), max_position_embeddings=40)


@pytest.fixture(scope="module")
def quantized(shared, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "onnx"
    export_model(shared, tiny_tokenizer, folder, quantize="int8", max_length=40)
    return folder / QUANTIZED


def random_lma(seed, k=8, continuous=False, range_sigmas=3.0):
    generator = torch.Generator().manual_seed(seed)
    settings = {"num_segments": k, "continuous": continuous, "range_sigmas": range_sigmas}
    module = lma_hf.LMA(**settings, statistics="running")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
        module.running_mean.normal_(std=5, generator=generator)
        module.running_std.uniform_(0.3, 2, generator=generator)
    module.num_batches_tracked.fill_(1)
    return module.eval()


def by_hand(table, x):
    """What a `TableLMA` stands for, in float64: the nearest level of x, LMA there, the nearest level of that."""
    scale, zero = (float(getattr(table, f"input_{name}")) for name in ("scale", "zero_point"))
    codes = np.clip(np.rint(x / np.float32(scale)).astype(np.float64) + zero, 0, 255).astype(int)
    scale, zero = (float(getattr(table, f"output_{name}")) for name in ("scale", "zero_point"))
    return (table.table[0].numpy()[codes] - zero) * scale


@pytest.mark.parametrize(
    ("seed", "k", "continuous", "range_sigmas"),
    [(0, 8, False, 3.0), (1, 16, False, 3.0), (2, 7, True, 0.5), (3, 64, False, 12.0)],
)
def test_onnx_runtime_looks_up_what_the_table_says(seed, k, continuous, range_sigmas, tmp_path):
    module = random_lma(seed, k, continuous, range_sigmas)
    lower, step = module.bounds(module.running_mean, module.running_std)
    reach = module.running_std * max(REACH_SIGMAS, range_sigmas)
    spread = torch.linspace(-1, 1, 3001)[:, None].expand(-1, 3) * 1.1 * reach + module.running_mean
    values = torch.cat([spread, torch.tensor([0.0, 1e-30, 1e30, -1e30])[:, None].expand(-1, 3)]).detach()
    model = exportable(ManyActivations(values, [module]), {LMA: TableLMA.of})
    table = model.activations[0]
    save_onnx(to_program(model, WITHOUT_TYPES), WITHOUT_TYPES, tmp_path / "table.onnx")
    ids = np.arange(len(values))[None]
    session = onnxruntime.InferenceSession(tmp_path / "table.onnx")
    (actual,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(actual[0], by_hand(table, values.numpy()), rtol=1e-6, atol=1e-7)
    # within half a level at either end, but where the nearest level of x lies beyond a jump
    with torch.no_grad():
        exact, slope = module(values), module.lines(lower, step)[0].abs().max()
    inside = (values - module.running_mean).abs() <= reach
    assert inside.float().mean() > 0.9
    allowed = 0.51 * (slope * table.input_scale + table.output_scale)
    close = (torch.tensor(actual[0]) - exact).abs() <= allowed
    assert close[inside].float().mean() >= 1 - (0 if continuous else k / 256)


def test_graph_multiplies_the_codes_that_the_table_gives(quantized):
    graph = onnx.load(quantized).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("GatherElements") == operators.count("QuantizeLinear") == 3
    makers = {output: node.op_type for node in graph.node for output in node.output}
    # of the reshaped look-up, and nothing in float between
    fed = [node for node in graph.node if node.op_type == "MatMulInteger" and makers[node.input[0]] == "Reshape"]
    assert len(fed) == 3
    made_anew = [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]
    assert made_anew
    assert "DequantizeLinear" not in {makers[node.input[0]] for node in made_anew}
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert all(set(node.output) & read for node in graph.node)


class Layer(torch.nn.Module):
    """An LMA and the linear layer that follows it."""

    def __init__(self, activation, width):
        super().__init__()
        self.activation, self.output = activation, torch.nn.Linear(width, 5)

    def forward(self, x):
        return self.output(self.activation(x))


def test_layer_is_one_integer_product_of_the_table(tmp_path):
    torch.manual_seed(0)
    layer = Layer(random_lma(4), 24)
    values = torch.randn(50, 24) * 2 + layer.activation.running_mean
    model = exportable(ManyActivations(values, [layer]), {LMA: TableLMA.of})
    save_onnx(to_program(model, WITHOUT_TYPES), WITHOUT_TYPES, tmp_path / "draft.onnx")
    quantize_onnx(tmp_path / "draft.onnx", tmp_path / "layer.onnx")
    graph = onnx.load(tmp_path / "layer.onnx").graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    (product,) = [node for node in graph.node if node.op_type == "MatMulInteger"]
    weights = stored[product.input[1]].astype(np.float64) - stored[product.input[3]]
    scales = next(stored[name] for name in stored if name.endswith("_scale") and stored[name].shape == (5,))
    ids = np.arange(50)[None]
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    (actual,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    activated = by_hand(model.activations[0].activation, values.numpy())
    expected = activated @ (weights * scales) + layer.output.bias.detach().double().numpy()
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def batch(shared):
    return with_types(padded_batch(shared, [12, 3, 20]), NAMES)


def logits_of(path, batch):
    (logits,) = onnxruntime.InferenceSession(path).run(None, {name: value.numpy() for name, value in batch.items()})
    return logits


def test_close_to_the_model(quantized, shared, batch):
    logits = logits_of(quantized, batch)
    with torch.no_grad():
        expected = shared(**batch).logits.numpy()
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max() + 0.02


@pytest.mark.extended
def test_the_same_when_folded(quantized, shared, batch, tiny_tokenizer, tmp_path):
    copied = copy.deepcopy(shared)
    fold_(copied)
    assert any(isinstance(module, FoldedLMA) for module in copied.modules())
    export_model(copied, tiny_tokenizer, tmp_path / "folded", quantize="int8", max_length=40)
    np.testing.assert_array_equal(logits_of(tmp_path / "folded" / QUANTIZED, batch), logits_of(quantized, batch))
