"""Attention as one operator of ONNX, in place of the formula's nine."""

import torch
from torch.onnx.ops import symbolic
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lma_hf.errors import ExportError

# under this name models find it: `set_attn_implementation(ONNX_ATTENTION)`
ONNX_ATTENTION = "lma_hf_onnx"
# the first that has the operator
ATTENTION_OPSET = 23


def onnx_attention(module, query, key, value, attention_mask, scaling=None, position_bias=None, **others):
    """ONNX's Attention, as a function of transformers' `AttentionInterface`: exported, and not run in PyTorch.

    It takes tokens in rows, as linear layers give them, so that no transposed copies of them are made.

    Args: query, key, value: (batch, heads, tokens, width of a head); heads of keys and values may be fewer.
        attention_mask, position_bias: what is added to the scores, or None.
    Raises: ExportError if the model wants a part of attention that it lacks.
    """
    if unknown := [name for name in ("softcap", "s_aux") if others.get(name) is not None]:
        raise ExportError(f"attention has {unknown[0]}, which cannot be exported to int8; export without quantize")
    added = [term for term in (attention_mask, position_bias) if term is not None]
    batch, heads, tokens, _ = query.shape
    output = symbolic(
        "::Attention",
        (_in_rows(query), _in_rows(key), _in_rows(value), *([sum(added)] if added else [])),
        {
            "q_num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        },
        dtype=torch.float32,
        shape=(batch, tokens, heads * value.shape[-1]),
        version=ATTENTION_OPSET,
    )
    return output.view(batch, tokens, heads, value.shape[-1]), None


def _in_rows(x):
    return x.transpose(1, 2).flatten(2)


AttentionInterface.register(ONNX_ATTENTION, onnx_attention)
# in numbers, which are added to the scores; that of a causal model is never left out
AttentionMaskInterface.register(ONNX_ATTENTION, eager_mask)
