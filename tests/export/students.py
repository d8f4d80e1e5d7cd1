"""Tiny students to export, and what an exported file is compared with."""

from types import SimpleNamespace

import numpy as np
import torch
from helpers import padded_batch, tiny_model
from torch import nn

import lma_hf

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class StubTokenizer:
    """What an export asks of a tokenizer, for models that have none."""

    def __init__(self, names, pad_token_id=0):
        self.model_input_names, self.pad_token_id = names, pad_token_id

    def save_pretrained(self, folder):
        pass


def make_student(architecture="bert", activation=None, **overrides):
    """A tiny model with calibrated LMA per channel, or another activation."""
    model = tiny_model(architecture, **overrides)
    activation = activation or lma_hf.LMAConfig(init="fit", per_channel=True)
    lma_hf.swap_activations_(model, activation)
    if isinstance(activation, lma_hf.LMAConfig):
        lma_hf.calibrate_(model, [padded_batch(model, [9, 12, 30, 4])])
    return model.eval()


def with_types(batch, names):
    """The batch with the inputs named, and a second segment where there are token types."""
    types = torch.zeros_like(batch["input_ids"])
    types[:, types.shape[1] // 2 :] = 1
    return {name: {**batch, "token_type_ids": types}[name] for name in names}


def difference(session, model, batch):
    """Largest difference of an ONNX session's logits from the model's."""
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    actual = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max()


class ManyActivations(nn.Module):
    """A "model" of activations side by side, whose token ids stand for the values that they see."""

    def __init__(self, values, activations):
        super().__init__()
        self.register_buffer("values", values)
        self.activations = nn.ModuleList(activations)

    def forward(self, input_ids, attention_mask):
        x = self.values[input_ids]
        return SimpleNamespace(logits=torch.cat([activation(x) for activation in self.activations], dim=-1))
