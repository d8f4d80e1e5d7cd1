"""Attention as one operator of ONNX, against the formula in NumPy and against PyTorch's models."""

import logging
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.students import NAMES, StubTokenizer, difference, make_student, with_types
from helpers import padded_batch
from torch import nn

from lma_hf.errors import ExportError
from lma_hf.export.attention import ATTENTION_OPSET, ONNX_ATTENTION, onnx_attention
from lma_hf.export.folder import QUANTIZED, export_model
from lma_hf.export.onnx import check_graph, exportable_to_onnx, save_onnx
from lma_hf.export.program import to_program

WITHOUT_TYPES = NAMES[:2]
HEADS, WIDTH, TOKENS, VOCAB = 4, 6, 9, 20


class OneAttention(nn.Module):
    """A "model" whose logits are what attention makes of vectors that token ids stand for.

    Args: scaling: as the interface takes it. biased: with a position bias for each head. masked: padding is left out.
    """

    def __init__(self, kv_heads, scaling=None, biased=False, masked=True):
        super().__init__()
        generator = torch.Generator().manual_seed(kv_heads)
        for name, heads in {"query": HEADS, "key": kv_heads, "value": kv_heads}.items():
            self.register_buffer(name, torch.randn(VOCAB, heads, WIDTH, generator=generator))
        self.register_buffer("bias", torch.randn(1, HEADS, VOCAB, VOCAB, generator=generator))
        self.scaling, self.biased, self.masked = scaling, biased, masked

    def inputs(self, input_ids, attention_mask):
        """query, key and value of shape (batch, heads, tokens, WIDTH), mask and bias that are added to the scores."""
        query, key, value = (table[input_ids].transpose(1, 2) for table in (self.query, self.key, self.value))
        length = input_ids.shape[1]
        hidden = (1 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
        hidden = hidden.expand(-1, -1, length, -1)
        return query, key, value, hidden if self.masked else None, self.bias[..., :length, :length]

    def forward(self, input_ids, attention_mask):
        query, key, value, mask, bias = self.inputs(input_ids, attention_mask)
        bias = bias if self.biased else None
        output, _ = onnx_attention(self, query, key, value, mask, scaling=self.scaling, position_bias=bias)
        return SimpleNamespace(logits=output.flatten(2))

    def by_hand(self, input_ids, attention_mask):
        """The same in float64."""
        query, key, value, mask, bias = (
            None if x is None else x.double().numpy() for x in self.inputs(input_ids, attention_mask)
        )
        key, value = (np.repeat(x, HEADS // x.shape[1], axis=1) for x in (key, value))
        scores = query @ key.swapaxes(2, 3) * (WIDTH**-0.5 if self.scaling is None else self.scaling)
        scores = scores + (0 if mask is None else mask) + (bias if self.biased else 0)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        output = weights / weights.sum(-1, keepdims=True) @ value
        return output.swapaxes(1, 2).reshape(*input_ids.shape, HEADS * WIDTH)


@pytest.mark.parametrize(
    "model",
    [
        OneAttention(kv_heads=4),
        OneAttention(kv_heads=4, scaling=0.3, biased=True),
        OneAttention(kv_heads=2),
        OneAttention(kv_heads=1, biased=True, masked=False),
        OneAttention(kv_heads=4, scaling=1.0, masked=False),
    ],
)
def test_operator_computes_attention(model, tmp_path):
    path = tmp_path / "attention.onnx"
    save_onnx(to_program(model, WITHOUT_TYPES, TOKENS), WITHOUT_TYPES, path, TOKENS, opset=ATTENTION_OPSET)
    check_graph(path)
    session = onnxruntime.InferenceSession(path)
    generator = torch.Generator().manual_seed(1)
    for rows, length, shorter in ((1, 1, 1), (1, 5, 5), (3, 9, 4)):
        ids = torch.randint(VOCAB, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, shorter:] = 0
        (actual,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(actual, model.by_hand(ids, mask), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "names", "operators"),
    [
        ("bert", NAMES, 3),
        pytest.param("distilbert", WITHOUT_TYPES, 3, marks=pytest.mark.extended),
        pytest.param("roberta", WITHOUT_TYPES, 3, marks=pytest.mark.slow),
        pytest.param("electra", NAMES, 3, marks=pytest.mark.slow),
        pytest.param("albert", NAMES, 3, marks=pytest.mark.slow),
        # it has attention of its own, which stays
        pytest.param("mpnet", WITHOUT_TYPES, 0, marks=pytest.mark.extended),
    ],
)
def test_model_with_the_operator_computes_what_pytorch_does(architecture, names, operators, tmp_path, caplog):
    model = make_student(architecture, "gelu")
    with caplog.at_level(logging.WARNING):
        copied = exportable_to_onnx(model, attention=ONNX_ATTENTION)
    assert not caplog.records
    path = tmp_path / "model.onnx"
    save_onnx(to_program(copied, names, 30), names, path, 30, opset=ATTENTION_OPSET)
    assert [node.op_type for node in onnx.load(path).graph.node].count("Attention") == operators
    session = onnxruntime.InferenceSession(path)
    for lengths, pad_to in (([1], None), ([12, 3, 1], None), ([5, 9], 30)):
        assert difference(session, model, with_types(padded_batch(model, lengths, pad_to=pad_to), names)) <= 1e-4


def test_int8_graph_has_the_operator_in_place_of_the_formula(exported):
    operators = [node.op_type for node in onnx.load(exported / QUANTIZED).graph.node]
    assert operators.count("Attention") == 3
    assert not {"Softmax", "Transpose"} & set(operators)


@pytest.mark.extended
def test_model_with_rotary_positions_is_exported_in_int8(tmp_path):
    model = make_student("modernbert", "gelu", pad_token_id=0, cls_token_id=1, sep_token_id=2)
    record = export_model(model, StubTokenizer(WITHOUT_TYPES), tmp_path / "out", max_length=40, quantize="int8")
    assert record["files"][QUANTIZED]["opset"] == 18
    session = onnxruntime.InferenceSession(tmp_path / "out" / QUANTIZED)
    assert difference(session, model, padded_batch(model, [12, 3, 1])) <= 0.2


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_attention_with_more_than_the_operator_has_is_refused(name):
    heads = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ExportError, match=f"{name}, which cannot be exported to int8; export without quantize"):
        onnx_attention(None, heads, heads, heads, None, **{name: 30.0})
