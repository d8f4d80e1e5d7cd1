"""Rounding, packing and the packed layers, against independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lma_hf.modeling.packed_lma import PackedEmbedding, PackedLinear, packed_like
from lma_hf.modeling.schemes_lma import BITS, ScalarScheme, dequantize, pack_bits, quantize, rounded, unpack_bits

schemes = st.builds(ScalarScheme, st.sampled_from(BITS), st.sampled_from([None, 1, 3, 8, 64]))
seeds = st.integers(0, 2**32 - 1)


def matrix(seed, rows=5, length=19, scale=1.0):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed)) * scale


@given(schemes, seeds, st.floats(-6, 3))
@settings(deadline=None)
def test_every_weight_goes_to_the_nearest_of_evenly_spaced_levels(scheme, seed, exponent):
    weight = matrix(seed, scale=10.0**exponent)
    values = rounded(weight, scheme).double().numpy()
    scales, zeros = (part.double().numpy() for part in quantize(weight, scheme)[1:])
    size = scheme.group_size or weight.shape[1]
    for row, found, row_scales, row_zeros in zip(weight.double().numpy(), values, scales, zeros, strict=True):
        for number, (step, zero) in enumerate(zip(row_scales, row_zeros, strict=True)):
            inside = slice(number * size, (number + 1) * size)
            group, result = row[inside], found[inside]
            low, high = min(group.min(), 0), max(group.max(), 0)
            exact = (high - low) / (2**scheme.bits - 1)
            # of float16: 11 bits, and below 2^-14 all the same 2^-24
            assert abs(step - exact) <= max(2.0**-11 * exact * 1.001, 2.0**-24)
            assert abs(zero + low / step) <= 0.5001 or zero == 2**scheme.bits - 1
            levels = step * (np.arange(2**scheme.bits) - zero)
            assert np.abs(result[:, None] - levels).min(axis=1).max() <= 1e-6 * max(step, high - low)
            assert (np.abs(group - result) <= np.abs(group[:, None] - levels).min(axis=1) + 1e-4 * step).all()


@given(schemes, seeds)
@settings(deadline=None)
def test_rounding_in_one_go_and_through_codes_gives_the_same_bits(scheme, seed):
    weight = matrix(seed)
    codes, scale, zero_point = quantize(weight, scheme)
    assert int(codes.max()) < 2**scheme.bits
    assert torch.equal(dequantize(codes, scale, zero_point, scheme), rounded(weight, scheme))
    assert torch.equal(scale, scale.half().float())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [16, 32])
def test_it_is_what_torchao_computes(bits, group_size):
    # not installed with the other test tools, since transformers then imports it in every process
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="torchao is not installed")
    weight = matrix(0, rows=64, length=96)
    shape, low, high = (1, group_size), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # its scale is a float32
    kind = primitives.MappingType.ASYMMETRIC
    scale, zero_point = primitives.choose_qparams_affine(weight, kind, shape, torch.int8, low, high)
    codes = primitives.quantize_affine(weight, shape, scale, zero_point, torch.int8, low, high)
    theirs = primitives.dequantize_affine(codes, shape, scale, zero_point, torch.int8, low, high)
    ours = rounded(weight, ScalarScheme(bits, group_size))
    errors = [(weight - values).square().mean().sqrt().item() for values in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=2e-2)
    assert (ours - theirs).abs().median() <= 0.1 * scale.min()


@pytest.mark.parametrize("bits", BITS)
def test_zero_stays_zero_and_constant_rows_are_finite(bits):
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.5, -0.5], [2.0, 2.0, 2.0], [-1e-9, 0.0, 1e-9]])
    values = rounded(weight, ScalarScheme(bits))
    assert torch.equal(values[weight == 0], torch.zeros(5))
    assert torch.allclose(values[2], weight[2], rtol=1e-3)
    assert torch.isfinite(values).all()


@given(st.sampled_from(BITS), seeds, st.integers(1, 40))
@settings(deadline=None)
def test_packed_bits_unpack_to_the_same_codes(bits, seed, length):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (3, length), generator=generator, dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, -(-length * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, length), codes)


@pytest.mark.parametrize("scheme", [ScalarScheme(bits, size) for bits in BITS for size in (None, 7)], ids=str)
def test_packed_layers_compute_what_the_rounded_ones_do(scheme):
    linear, table = nn.Linear(19, 6), nn.Embedding(11, 19, padding_idx=0)
    packed = PackedLinear.like(linear, scheme).fill_(*quantize(linear.weight, scheme))
    packed_table = PackedEmbedding.like(table, scheme).fill_(*quantize(table.weight, scheme))
    with torch.no_grad():
        packed.bias.copy_(linear.bias)
        linear.weight.copy_(rounded(linear.weight, scheme))
        table.weight.copy_(rounded(table.weight, scheme))
    x, ids = torch.randn(2, 3, 19), torch.randint(11, (2, 5))
    assert torch.equal(packed(x), linear(x))
    assert torch.equal(packed_table(ids), table(ids))
    assert torch.equal(packed.to_float().weight, linear.weight)
    assert torch.equal(packed_table.to_float().weight, table.weight)
    assert packed_table.to_float().padding_idx == 0


def test_an_unpacked_weight_is_not_kept_past_a_change():
    scheme = ScalarScheme(4)
    first, second = (PackedLinear(8, 4, scheme).fill_(*quantize(matrix(seed, 4, 8), scheme)) for seed in (1, 2))
    x = torch.randn(3, 8)
    assert not torch.equal(first(x), second(x))
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))
    assert first.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_writing_into_a_weight_changes_nothing(kind):
    layer = kind(8, 4)
    packed = packed_like(layer, ScalarScheme(4)).fill_(*quantize(layer.weight, ScalarScheme(4)))
    x = torch.randn(3, 8) if kind is nn.Linear else torch.arange(8)
    expected, weight = packed(x), packed.weight
    assert torch.equal(weight, rounded(layer.weight, ScalarScheme(4)))
    with torch.no_grad():
        packed.weight.normal_()
    packed.weight.data.zero_()
    assert torch.equal(packed.weight, weight)
    assert torch.equal(packed(x), expected)


def test_an_unpacked_weight_is_not_kept_past_a_cast():
    packed = PackedLinear(8, 4, ScalarScheme(4)).fill_(*quantize(matrix(0, 4, 8), ScalarScheme(4)))
    packed(torch.randn(3, 8))
    packed.cast_(torch.float64)
    assert packed.weight.dtype == torch.float64


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 3 * super().forward(ids)


def test_what_computes_in_a_way_of_its_own_is_not_packed():
    with pytest.raises(ValueError, match=r"a Scaled cannot be packed, allowed are nn\.Linear, nn\.Embedding"):
        packed_like(Scaled(8, 4), ScalarScheme(8))


def test_a_layer_without_bias_stays_without():
    linear = nn.Linear(8, 4, bias=False)
    packed = PackedLinear.like(linear, ScalarScheme(8)).fill_(*quantize(linear.weight, ScalarScheme(8)))
    assert packed.bias is None
    assert packed.to_float().bias is None
    assert packed(torch.ones(1, 8)).shape == (1, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_without_a_finite_scale_are_refused(bad):
    with pytest.raises(ValueError, match="not finite, or too far apart"):
        PackedLinear(2, 1, ScalarScheme(2)).fill_(*quantize(torch.tensor([[0.0, bad]]), ScalarScheme(2)))


@pytest.mark.parametrize(("settings", "message"), [({"bits": 3}, "bits is 3"), ({"group_size": 0}, "group_size is 0")])
def test_a_scheme_says_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=f"{message}, allowed are"):
        ScalarScheme(**settings)
