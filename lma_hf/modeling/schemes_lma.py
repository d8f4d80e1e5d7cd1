"""How weights are rounded and lie in bytes: levels that are evenly spaced, or centroids of blocks."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

BITS = (2, 4, 8)
MAX_CENTROIDS = 256  # of a code of one byte
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
        """How many levels a group has."""
        return 2**self.bits

    def buffers(self, num_rows, row_length):
        """Name -> (shape, dtype) of what a matrix is packed into; floats are float16 in a file."""
        groups = 1 if self.group_size is None else math.ceil(row_length / self.group_size)
        return {
            "packed": ((num_rows, math.ceil(row_length * self.bits / 8)), torch.uint8),
            "scale": ((num_rows, groups), None),
            "zero_point": ((num_rows, groups), torch.uint8),
        }

    def pack(self, codes, scale, zero_point):
        """What `quantize` returns, as the content of the buffers."""
        return {"packed": pack_bits(codes, self.bits), "scale": scale, "zero_point": zero_point}

    def unpack(self, content, index, row_length):
        """Rows of the matrix. Args: content: of the buffers. index: as a tensor of rows is indexed."""
        codes = unpack_bits(content["packed"][index], self.bits, row_length)
        return dequantize(codes, content["scale"][index], content["zero_point"][index], self)


@dataclass(frozen=True)
class ProductScheme:
    """Product quantization (Stock et al. 2020, arXiv 1907.05686): the nearest centroid for each block of a row.

    Args:
        block_size: neighbours in a row that make a block; zeros fill the last one up.
        num_centroids: of a matrix, 1 to 256; a block takes a byte.
    Raises: ValueError if a value is not allowed.
    """

    block_size: int = 8
    num_centroids: int = MAX_CENTROIDS

    def __post_init__(self):
        for name, most in (("block_size", math.inf), ("num_centroids", MAX_CENTROIDS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                limit = "" if most == math.inf else f" to {most}"
                raise ValueError(f"{name} is {value!r}, allowed are whole numbers from 1{limit}")

    def buffers(self, num_rows, row_length):
        """Name -> (shape, dtype) of what a matrix is packed into; floats are float16 in a file."""
        return {
            "packed": ((num_rows, math.ceil(row_length / self.block_size)), torch.uint8),
            "codebook": ((self.num_centroids, self.block_size), None),
        }

    def pack(self, codes, codebook):
        """Codes of shape (rows, blocks) and centroids, as the content of the buffers."""
        return {"packed": codes, "codebook": codebook}

    def unpack(self, content, index, row_length):
        """Rows of the matrix. Args: content: of the buffers. index: as a tensor of rows is indexed."""
        return content["codebook"][content["packed"][index].long()].flatten(-2)[..., :row_length]

    def blocks(self, weight):
        """The blocks of a matrix: (rows, row length) -> (rows, blocks, block size)."""
        missing = -weight.shape[-1] % self.block_size
        return F.pad(weight, (0, missing)).unflatten(-1, (-1, self.block_size))


METHODS = {"scalar": ScalarScheme, "product": ProductScheme}


def scheme_to_dict(scheme):
    """A scheme as JSON."""
    method = next(name for name, kind in METHODS.items() if type(scheme) is kind)
    return {"method": method, **vars(scheme)}


def scheme_from_dict(values):
    """Inverse of `scheme_to_dict`. Raises: ValueError or TypeError for what this version does not know."""
    settings = dict(values)
    method = settings.pop("method", None)
    if method not in METHODS:
        raise ValueError(f"quantization method is {method!r}, allowed are {', '.join(METHODS)}")
    return METHODS[method](**settings)


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
