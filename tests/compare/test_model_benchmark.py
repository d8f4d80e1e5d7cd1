"""FFNs and models that are timed: groups, memory, and a training step that trains."""

import pytest
import torch

from lma_hf.compare import model_benchmark
from lma_hf.compare.timing import MODES, Setting
from lma_hf.modeling.activation_lma import LMA


@pytest.fixture
def small_models(monkeypatch):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    monkeypatch.setattr(model_benchmark, "MODEL_SIZES", sizes)
    monkeypatch.setattr(model_benchmark, "BATCHES", {(1, 4): ("inference",), (2, 4): MODES})
    monkeypatch.setattr(model_benchmark, "FFN_SIZES", ((8, 32),))
    monkeypatch.setattr(model_benchmark, "TOKENS", 16)


def test_ffns(small_models):
    groups = list(model_benchmark.measure_ffns(["float32", "bfloat16"], 1, repeats=1))
    expected = [("ffn", "16x8x32", dtype, 1, mode) for dtype in ("float32", "bfloat16 autocast") for mode in MODES]
    assert [tuple(group[0][key] for key in Setting._fields) for group in groups] == expected
    for group in groups:
        assert [row["candidate"] for row in group] == list(model_benchmark.FFN_CANDIDATES)
    kept = {row["candidate"]: row["kept_bytes"] for row in groups[1]}
    # the input of both Linears and of the activation; a ReLU's output is the second Linear's input
    assert kept["gelu"] == 4 * 16 * (8 + 32 + 32)
    assert (kept["relu"], kept["lma"]) == (4 * 16 * (8 + 32), kept["gelu"] + 8)


def test_models(small_models):
    groups = list(model_benchmark.measure_models(["float32", "bfloat16"], 1, repeats=1))
    settings = [(group[0]["shape"], group[0]["dtype"], group[0]["mode"]) for group in groups]
    precisions = ("float32", "bfloat16 autocast")
    expected = [("1x4", precision, "inference") for precision in precisions]
    assert settings == expected + [("2x4", precision, mode) for precision in precisions for mode in MODES]
    for group in groups:
        assert [row["candidate"] for row in group] == ["gelu", "lma", "lma per channel"]
        assert [row["kernel"] == "torch" for row in group] == [True, False, False]


def test_step_of_a_model_updates_it(small_models):
    batch = model_benchmark._random_inputs(2, 4)
    model, optimizer, _ = model_benchmark._model_candidate("lma", batch, "bfloat16", "training").step.args
    swapped = [module for module in model.modules() if isinstance(module, LMA)]
    assert [module.settings.statistics for module in swapped] == ["running"] * 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model_benchmark._optimizer_step(model, optimizer, batch)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[2] for name in changed} >= {"weight", "slope", "intercept", "running_mean"}
    assert all(parameter.grad is None for parameter in model.parameters())
