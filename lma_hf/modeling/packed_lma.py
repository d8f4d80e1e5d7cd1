"""Weights of 2, 4 or 8 bits: how they are rounded, how they lie in bytes, and the layers that compute with them."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

BITS = (2, 4, 8)
SMALLEST_SCALE = 2.0**-24  # that float16 can hold


@dataclass(frozen=True)
class ScalarScheme:
    """Uniform quantization: 2^bits evenly spaced values for each group of weights.

    Args:
        bits: of a weight: 2, 4 or 8.
        group_size: neighbours in a row that share a scale, the last group of a row may be smaller; None: a whole row,
            which is an output unit of a linear layer, a word of an embedding.
    Raises: ValueError if a value is not allowed.
    """

    bits: int = 8
    group_size: int | None = None

    def __post_init__(self):
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}, allowed are {', '.join(map(str, BITS))}")
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"group_size is {size!r}, allowed are whole numbers from 1, and None for a row")

    @property
    def levels(self):
        return 2**self.bits

    def num_groups(self, row_length):
        return 1 if self.group_size is None else math.ceil(row_length / self.group_size)

    def num_bytes(self, row_length):
        return math.ceil(row_length * self.bits / 8)


def quantize(weight, scheme):
    """Round each weight to the nearest of its group's levels, which go from the smallest weight to the largest.

    The linear scaling in buckets of Polino et al. 2018 (arXiv 1802.05668, section 2), with two changes: 0 is always a
    level, so that it stays 0, and the scale is a float16.

    Args: weight: of shape (rows, row length), finite.
    Returns: codes (uint8, as weight), scale (float32 that float16 can hold) and zero_point (uint8), both of shape
        (rows, groups).
    """
    codes, scale, zero_point = _round(weight, scheme)
    return _join(codes, weight).to(torch.uint8), scale[..., 0], zero_point[..., 0].to(torch.uint8)


def dequantize(codes, scale, zero_point, scheme):
    """Inverse of `quantize`, up to the rounding: (codes - zero_point) * scale, in the scale's dtype."""
    groups = _split(codes.to(scale.dtype), scheme)
    return _join((groups - zero_point.to(scale.dtype)[..., None]).mul_(scale[..., None]), codes)


def rounded(weight, scheme):
    """`dequantize(*quantize(weight, scheme), scheme)` in one go, to the same bits; in the weight's dtype."""
    codes, scale, zero_point = _round(weight, scheme)
    return _join(codes.sub_(zero_point).mul_(scale), weight).to(weight.dtype)


def _round(weight, scheme):
    groups = _split(weight.float(), scheme)
    scale, zero_point = levels_of(groups, scheme)
    return nearest_codes(groups, scale, zero_point, scheme), scale, zero_point


def levels_of(groups, scheme):
    """What the levels of groups of weights are.

    Args: groups: float32 of shape (..., group size).
    Returns: scale, that float16 can hold, and zero_point, both float32 of shape (..., 1).
    """
    # aminmax takes ten times as long on CPUs
    low, high = groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / (scheme.levels - 1)).half().float().clamp_(min=SMALLEST_SCALE)
    return scale, (-low / scale).round_().clamp_(max=scheme.levels - 1)


def nearest_codes(weight, scale, zero_point, scheme):
    """The numbers, from 0, of the levels that are nearest, in the weight's dtype; the arguments' shapes broadcast."""
    return (weight / scale).round_().add_(zero_point).clamp_(0, scheme.levels - 1)


def _split(rows, scheme):
    """(..., row length) -> (..., groups, group size); zeros fill the last group up, which changes no range."""
    size = scheme.group_size or rows.shape[-1]
    missing = -rows.shape[-1] % size
    return (F.pad(rows, (0, missing)) if missing else rows).unflatten(-1, (-1, size))


def _join(groups, like):
    """Inverse of `_split`."""
    return groups.flatten(-2)[..., : like.shape[-1]]


def pack_bits(codes, bits):
    """Codes below 2^bits, of shape (rows, n), as bytes of shape (rows, ceil(n * bits / 8)); the first lies lowest."""
    per_byte = 8 // bits
    codes = F.pad(codes, (0, -codes.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    return sum(codes[..., place] << (bits * place) for place in range(per_byte))


def unpack_bits(packed, bits, row_length):
    """Inverse of `pack_bits`."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :row_length]


class PackedWeight(nn.Module):
    """A matrix of few bits. In a file the scales are float16; in memory they have the dtype that is computed in.

    Buffers: packed, uint8 of shape (rows, bytes of a row); scale, and zero_point, uint8, of shape (rows, groups).
    """

    def __init__(self, num_rows, row_length, scheme):
        super().__init__()
        self.row_length, self.scheme = row_length, scheme
        groups = num_rows, scheme.num_groups(row_length)
        self.register_buffer("packed", torch.zeros(num_rows, scheme.num_bytes(row_length), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(groups))
        self.register_buffer("zero_point", torch.zeros(groups, dtype=torch.uint8))

    @property
    def num_weights(self):
        """How many numbers the matrix has."""
        return len(self.packed) * self.row_length

    def fill_(self, codes, scale, zero_point):
        """Take over what `quantize` returns. Raises: ValueError if a scale is not finite."""
        if not torch.isfinite(scale).all():
            raise ValueError("weights that are not finite, or too far apart for a scale in float16")
        self.packed.copy_(pack_bits(codes, self.scheme.bits))
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        return self

    def rows(self, index=slice(None)):
        """Unpacked rows. Args: index: as a tensor of rows is indexed. Returns: of shape (*index, row length)."""
        codes = unpack_bits(self.packed[index], self.scheme.bits, self.row_length)
        return dequantize(codes, self.scale[index], self.zero_point[index], self.scheme)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = destination[f"{prefix}scale"].half()

    def extra_repr(self):
        group = "row" if self.scheme.group_size is None else self.scheme.group_size
        return f"{len(self.packed)}x{self.row_length}, bits={self.scheme.bits}, group={group}"


class PackedEmbedding(PackedWeight):
    """`nn.Embedding` for inference that unpacks the rows that are looked up."""

    def __init__(self, num_embeddings, embedding_dim, scheme, padding_idx=None):
        super().__init__(num_embeddings, embedding_dim, scheme)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    @classmethod
    def like(cls, module, scheme):
        """An empty one in the place of an `nn.Embedding`."""
        return cls(module.num_embeddings, module.embedding_dim, scheme, module.padding_idx)

    def to_float(self):
        """The `nn.Embedding` that computes the same."""
        return nn.Embedding.from_pretrained(self.rows(), freeze=False, padding_idx=self.padding_idx)

    def forward(self, input_ids):
        """Args: input_ids: of any shape. Returns: the same with the embedding's width added."""
        return self.rows(input_ids)


class PackedLinear(PackedWeight):
    """`nn.Linear` for inference; unpacks its weight at the first pass, and keeps it."""

    def __init__(self, in_features, out_features, scheme, bias=True):
        super().__init__(out_features, in_features, scheme)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.unpacked = None

    @classmethod
    def like(cls, module, scheme):
        """An empty one in the place of an `nn.Linear`."""
        return cls(module.in_features, module.out_features, scheme, module.bias is not None)

    def to_float(self):
        """The `nn.Linear` that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.rows())
        linear.bias = self.bias
        return linear

    @property
    def weight(self):
        """Of shape (out_features, in_features)."""
        if self.unpacked is None:
            self.unpacked = self.rows()
        return self.unpacked

    def forward(self, x):
        """Args: x: of shape (..., in_features). Returns: of shape (..., out_features)."""
        return F.linear(x, self.weight, self.bias)

    def _apply(self, fn, recurse=True):
        self.unpacked = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self.unpacked = None
        super()._load_from_state_dict(*args)


PACKED = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}
