"""Rounding for calibration data: the compensation against least squares in float64, and what it gains."""

import pytest
import torch
from helpers import padded_batch, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_hf.compression.quantization.calibrated import DAMPING, calibrated_codes, compensated_codes, input_grams
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.errors import SurgeryError
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.schemes_lma import ScalarScheme, dequantize, quantize, rounded

schemes = st.builds(ScalarScheme, st.sampled_from([2, 4, 8]), st.sampled_from([None, 4, 5]))


def problem(seed, rows=6, length=12, correlation=1.0):
    """A weight and the mean outer product of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(length) + correlation * torch.randn(length, length, generator=generator)
    inputs = torch.randn(200, length, generator=generator) @ mixing
    return torch.randn(rows, length, generator=generator), (inputs.T @ inputs / 200).double()


def by_least_squares(weight, gram, scheme):
    """What the compensation is meant to be: after each column the others are fitted anew to the original outputs."""
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram))
    original, current = weight.double(), weight.double().clone()
    size = scheme.group_size or weight.shape[1]
    for column in range(weight.shape[1]):
        if column % size == 0:
            start = current[:, column : column + size].float()
            _, scale, zero_point = quantize(start, ScalarScheme(scheme.bits))
        code = (current[:, column].float() / scale[:, 0]).round() + zero_point[:, 0]
        current[:, column] = (code.clamp(0, scheme.levels - 1) - zero_point[:, 0]) * scale[:, 0]
        rest = slice(column + 1, None)
        error = (original - current)[:, : column + 1]
        # minimum over the rest of tr((original - current) gram (original - current)^T)
        current[:, rest] = original[:, rest] + error @ damped[: column + 1, rest] @ damped[rest, rest].inverse()
    return current


@given(schemes, st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_every_column_is_made_up_for_as_least_squares_would(scheme, seed):
    weight, gram = problem(seed)
    codes, scale, zero_point = compensated_codes(weight, gram, scheme)
    found, expected = dequantize(codes, scale, zero_point, scheme).double(), by_least_squares(weight, gram, scheme)
    assert scale.shape == quantize(weight, scheme)[1].shape
    # a weight in the middle of two levels may go to either, and those after it follow
    rows = (found - expected).abs().amax(dim=1) <= 1e-3
    assert rows.float().mean() >= 0.8


@given(schemes, st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_inputs_without_correlation_leave_nothing_to_make_up_for(scheme, seed):
    weight, _ = problem(seed)
    gram = torch.diag(torch.rand(weight.shape[1], dtype=torch.float64) + 0.5)
    assert all(map(torch.equal, compensated_codes(weight, gram, scheme), quantize(weight, scheme)))


def output_error(weight, values, gram):
    difference = (weight - values).double()
    return torch.einsum("ri,ij,rj->", difference, gram, difference)


@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_are_closer_than_by_rounding_alone(bits):
    weight, gram = problem(1, rows=64, length=48)
    scheme = ScalarScheme(bits, 16)
    calibrated = dequantize(*compensated_codes(weight, gram, scheme), scheme)
    ratio = output_error(weight, calibrated, gram) / output_error(weight, rounded(weight, scheme), gram)
    assert ratio < 0.8


def test_padding_does_not_count():
    model = tiny_model()
    fqn = "bert.encoder.layer.0.intermediate.dense"
    modules = {fqn: model.get_submodule(fqn)}
    short, long = (padded_batch(model, (5, 9), pad_to=length) for length in (9, 20))
    # sums are in float64, but activations in float32, which another length rounds otherwise
    found, expected = (input_grams(model, modules, [batch]) for batch in (short, long))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not model.get_submodule(fqn)._forward_pre_hooks


def test_a_calibrated_model_is_closer_and_nothing_else_has_changed():
    batches = [padded_batch(tiny_model(), (30, 21, 35, 40), seed=seed) for seed in range(8)]
    expected, found = tiny_model()(**batches[0]).logits, {}
    for name, given_batches in {"rounded": None, "calibrated": batches}.items():
        model = tiny_model().train()
        quantize_(model, ScalarScheme(4, 8), batches=given_batches)
        assert model.training
        found[name] = model.eval()
    errors = {name: (model(**batches[0]).logits - expected).square().mean() for name, model in found.items()}
    assert errors["calibrated"] < 0.7 * errors["rounded"]
    for fqn, module in packed_modules(found["rounded"]).items():
        other = found["calibrated"].get_submodule(fqn)
        assert torch.equal(module.packed, other.packed) == ("embeddings" in fqn)


POOLER, FIRST, LAST = (
    "bert.pooler.dense",
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.2.output.dense",
)


def test_without_inputs_every_weight_goes_to_its_nearest_level():
    weight, gram = problem(3)
    for scheme in (ScalarScheme(4), ScalarScheme(2, 5)):
        assert all(map(torch.equal, compensated_codes(weight, gram * 0, scheme), quantize(weight, scheme)))


def test_a_layer_that_no_pass_calls_is_rounded():
    # a model for tokens leaves its pooler out
    model, batches = tiny_model(), [padded_batch(tiny_model(), (5, 9))]
    model.bert.pooler.forward = lambda hidden: hidden[:, 0]
    weight = model.get_submodule(POOLER).weight.clone()
    assert not input_grams(model, {POOLER: model.get_submodule(POOLER)}, batches)[POOLER].any()
    quantize_(model, ScalarScheme(4), batches=batches)
    assert torch.equal(model.get_submodule(POOLER).rows(), rounded(weight, ScalarScheme(4)))


def test_inputs_of_zeros_only_leave_a_rounded_layer():
    model, batches = tiny_model(), [padded_batch(tiny_model(), (5, 9))]
    up = model.get_submodule("bert.encoder.layer.2.intermediate.dense")
    # GELU(0) is 0
    torch.nn.init.zeros_(up.weight)
    torch.nn.init.zeros_(up.bias)
    weight = model.get_submodule(LAST).weight.clone()
    quantize_(model, ScalarScheme(4), batches=batches)
    assert torch.equal(model.get_submodule(LAST).rows(), rounded(weight, ScalarScheme(4)))


@pytest.mark.parametrize("fqn", ["bert.embeddings.word_embeddings", FIRST, LAST])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_that_are_not_finite_are_refused_as_without_calibration(fqn, bad):
    found = []
    for batches in (None, [padded_batch(tiny_model(), (5, 9))]):
        model = tiny_model()
        model.get_submodule(fqn).weight.data[7, 1] = bad
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(SurgeryError, match="has weights that are not finite") as error:
            quantize_(model, ScalarScheme(4), batches=batches)
        found.append(str(error.value))
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    assert found[0] == found[1]
    assert found[0].startswith(fqn)


def test_inputs_that_are_not_finite_are_named_and_the_weights_are_what_they_were():
    model, batches = tiny_model(), [padded_batch(tiny_model(), (5, 9))]
    model.get_submodule("bert.encoder.layer.1.output.LayerNorm").weight.data[0] = float("nan")
    modules = {fqn: module for fqn, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    before = {fqn: module.weight.clone() for fqn, module in modules.items()}
    with pytest.raises(SurgeryError, match=r"bert\.encoder\.layer\.2.*query has inputs that are not finite"):
        calibrated_codes(model, modules, dict.fromkeys(modules, ScalarScheme(4)), batches)
    assert all(torch.equal(modules[fqn].weight, before[fqn]) for fqn in modules)
