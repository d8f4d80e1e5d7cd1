"""The operators lma_hf::* by Triton: the kernels of `triton_code` over the tiles of x."""

import math
from typing import NamedTuple

import torch
import triton

from lma_hf.kernels import triton_code
from lma_hf.kernels.registry import DTYPES

TILE = 4096  # elements of a tile: 32 for each of 128 threads, whose registers hold them in the backward pass too
MAX_WIDTH = 64  # channels of a tile: a whole line of memory in bfloat16; more rows instead mean fewer sums to write


class Tiling(NamedTuple):
    """x as rows of channels, in tiles of height x width."""

    rows: int
    channels: int
    height: int
    width: int

    @property
    def down(self):
        return triton.cdiv(self.rows, self.height)

    @property
    def count(self):
        return self.down * triton.cdiv(self.channels, self.width)

    def spots(self, per_channel):
        """Shape (tiles, units) of what is summed within tiles."""
        return (self.down, self.channels) if per_channel else (self.count, 1)

    def arguments(self, per_channel):
        """What every kernel over x takes."""
        tile = {"PER_CHANNEL": per_channel, "ROWS": self.height, "CHANNELS": self.width}
        return {"rows": self.rows, "channels": self.channels, **tile}


def tiling_of(x, by_row):
    """The tiles of x; where it does not matter to which row and channel an element belongs, x is one long row."""
    channels = x.shape[-1] if by_row else x.numel()
    width = min(MAX_WIDTH, triton.next_power_of_2(max(1, channels))) if by_row else TILE
    return Tiling(x.numel() // max(1, channels), channels, TILE // width, width)


def prepared(x):
    """x as the kernels take it. Raises: TypeError where float32 would lose digits."""
    if x.dtype not in DTYPES:
        raise TypeError(f"x is {x.dtype}; the kernels take {', '.join(map(str, DTYPES))}")
    return x.contiguous()


def launch(kernel, programs, x, *arguments, **constants):
    """Run so many programs where x is. Products and sums are rounded one by one, as the reference rounds them."""
    # the current device need not be that of x
    with torch.cuda.device_of(x):
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=False)


def as_tables(*tensors):
    """Tables as the kernels read them, neighbouring channels side by side: (k,) or (k, channels), float32."""
    return [tensor.t().to(torch.float32).contiguous() for tensor in tensors]


def lma(x, slope, intercept, lower, step):
    return forward(x, as_tables(slope, intercept, lower, step), None, slope.dim() == 2, statistics=False)[0]


def token_statistics(x, mask, per_channel):
    return forward(x, None, mask, per_channel, statistics=True)[1]


def lma_with_statistics(x, slope, intercept, lower, step, mask):
    y, statistics = forward(x, as_tables(slope, intercept, lower, step), mask, slope.dim() == 2, statistics=True)
    return y, *statistics


def forward(x, tables, mask, per_channel, statistics):
    """(y, (count, mean, m2)), of which y is None without tables, and the others are where they are not asked for."""
    x = prepared(x)
    y = None if tables is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    tiling = tiling_of(x, per_channel or mask is not None)
    parts = x.new_empty((4, *tiling.spots(per_channel)), dtype=torch.float32) if statistics else None
    launch(
        triton_code.forward_kernel,
        tiling.count,
        x,
        x,
        y,
        *(tables or (None,) * 4),
        None if mask is None else mask.to(torch.bool).contiguous(),
        *((None,) * 4 if parts is None else parts),
        **tiling.arguments(per_channel),
        SEGMENTS=1 if tables is None else len(tables[0]),
    )
    return y, merge(parts, per_channel) if statistics else None


def merge(parts, per_channel):
    """count, mean and m2 of all tiles, from what the forward kernel writes for each: (4, tiles, units)."""
    _, tiles, units = parts.shape
    merged = [parts.new_empty(units if per_channel else ()) for _ in range(3)]
    width = min(MAX_WIDTH, triton.next_power_of_2(max(1, units)))
    programs, sizes = triton.cdiv(units, width), {"TILES": TILE // width, "UNITS": width}
    launch(triton_code.merge_kernel, programs, parts, *parts, *merged, tiles, units, **sizes)
    return merged


def lma_backward(grad, x, slope, lower, step, parameters):
    x, grad, per_channel = prepared(x), grad.contiguous(), slope.dim() == 2
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    tiling = tiling_of(x, per_channel)
    spots = tiling.spots(per_channel)
    sums = x.new_empty((2, slope.shape[-1], *spots), dtype=torch.float32) if parameters else None
    launch(
        triton_code.backward_kernel,
        tiling.count,
        x,
        grad,
        x,
        grad_x,
        *as_tables(slope, lower, step),
        *((None,) * 2 if sums is None else sums),
        **tiling.arguments(per_channel),
        spots=math.prod(spots),
        SEGMENTS=slope.shape[-1],
    )
    if sums is None:
        return grad_x, slope.new_zeros(slope.shape), slope.new_zeros(slope.shape)
    return grad_x, *(add_up(each, slope) for each in sums)


def add_up(sums, slope):
    """Sums of tiles, (k, tiles, units), as a gradient of the shape of slope."""
    total = sums.sum(1, dtype=torch.float64).t()
    return total.to(slope.dtype, memory_format=torch.contiguous_format).view(slope.shape)
