"""LMA in Triton, as it runs on the GPU; `lma_hf.kernels.triton_launch` launches it.

x is seen as rows of channels and cut into tiles; a program works on one tile, in float32. Sums over x are taken within
a tile, written by its program alone, and added up afterwards in a fixed order: results do not vary from run to run.
"""

import triton
import triton.language as tl

MAX_BLENDED = tl.constexpr(16)


@triton.jit
def tile_of(rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows (ROWS, 1) and channels (1, CHANNELS) of this program; in int64, x can have more than 2^31 elements."""
    across = tl.cdiv(channels, CHANNELS)
    down = tl.program_id(0) // across
    row = down.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = (tl.program_id(0) % across).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return row, channel


@triton.jit
def spot_of(channel, channels, PER_CHANNEL: tl.constexpr, CHANNELS: tl.constexpr):
    """Where this program's sums belong in (tiles, units), and which of them exist."""
    program = tl.program_id(0).to(tl.int64)
    if PER_CHANNEL:
        spot, exists = program // tl.cdiv(channels, CHANNELS) * channels + channel, channel < channels
    else:
        spot, exists = program, program >= 0
    return spot, exists


@triton.jit
def segment_of(x, lower, step, channel, channels, SEGMENTS: tl.constexpr, PER_CHANNEL: tl.constexpr):
    """Segment of every element, exactly as the reference finds it: subtract, then multiply by the rounded 1 / step."""
    if PER_CHANNEL:
        begin = tl.load(lower + channel, channel < channels, 0.0)
        width = tl.load(step + channel, channel < channels, 1.0)
    else:
        begin, width = tl.load(lower), tl.load(step)
    position = (x - begin) * tl.div_rn(1.0, width)
    position = tl.minimum(tl.maximum(position, 0.0), SEGMENTS - 1.0)
    # NaN is 0 by now, but older interpreters keep it and convert it to some negative index
    return tl.maximum(position.to(tl.int32), 0)


@triton.jit
def look_up(table, index, channel, channels, SEGMENTS: tl.constexpr, PER_CHANNEL: tl.constexpr):
    """Entry of a table, (k,) or (k, channels), for every index of the tile.

    A shared table lies in one or two lines of the first-level cache, where the 32 reads of a warp hardly collide: the
    look-up stays cheaper than the memory traffic of x on an H100, for any k. The entries of many channels lie in many
    lines, so there a few segments are told apart by comparisons instead, which need one read a column.
    """
    if not PER_CHANNEL:
        entry = tl.load(table + index)
    elif SEGMENTS > MAX_BLENDED:
        entry = tl.load(table + index * channels + channel, channel < channels, 0.0)
    else:
        entry = tl.load(table + channel, channel < channels, 0.0)
        for j in tl.static_range(1, SEGMENTS):
            entry = tl.where(index < j, entry, tl.load(table + j * channels + channel, channel < channels, 0.0))
    return entry


@triton.jit
def total_of(values, PER_CHANNEL: tl.constexpr):
    """Sum over a tile: a scalar, or (1, CHANNELS)."""
    return tl.sum(values, 0, keep_dims=True) if PER_CHANNEL else tl.sum(values)


@triton.jit
def forward_kernel(
    x,
    y,
    slope,
    intercept,
    lower,
    step,
    mask,
    counts,
    centers,
    rests,
    squares,
    rows,
    channels,
    SEGMENTS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y; and of each tile's real rows the count, a center close to their mean, and the sums of deviations from it and
    of their squares. Either only where there is a place for it.
    """
    row, channel = tile_of(rows, channels, ROWS, CHANNELS)
    at, inside = row * channels + channel, (row < rows) & (channel < channels)
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if y is not None:
        index = segment_of(value, lower, step, channel, channels, SEGMENTS, PER_CHANNEL)
        factor = look_up(slope, index, channel, channels, SEGMENTS, PER_CHANNEL)
        addend = look_up(intercept, index, channel, channels, SEGMENTS, PER_CHANNEL)
        tl.store(y + at, factor * value + addend, inside)
    if counts is not None:
        real = inside
        if mask is not None:
            real = inside & (tl.load(mask + row, row < rows, 0) != 0)
        spot, exists = spot_of(channel, channels, PER_CHANNEL, CHANNELS)
        count = total_of(real.to(tl.float32), PER_CHANNEL)
        # a second pass over what is at hand: no difference of large sums is needed
        center = total_of(tl.where(real, value, 0.0), PER_CHANNEL) / tl.maximum(count, 1.0)
        deviation = tl.where(real, value - center, 0.0)
        tl.store(counts + spot, count, exists)
        tl.store(centers + spot, center, exists)
        # not quite 0, as the center is rounded
        tl.store(rests + spot, total_of(deviation, PER_CHANNEL), exists)
        tl.store(squares + spot, total_of(deviation * deviation, PER_CHANNEL), exists)


@triton.jit
def backward_kernel(
    grad,
    x,
    grad_x,
    slope,
    lower,
    step,
    slope_sums,
    intercept_sums,
    rows,
    channels,
    spots,
    SEGMENTS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dL/dx, and the sums of grad * x and of grad over each segment within each tile where they have a place."""
    row, channel = tile_of(rows, channels, ROWS, CHANNELS)
    at, inside = row * channels + channel, (row < rows) & (channel < channels)
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    # 0 outside, which adds nothing
    gradient = tl.load(grad + at, inside, 0.0).to(tl.float32)
    index = segment_of(value, lower, step, channel, channels, SEGMENTS, PER_CHANNEL)
    tl.store(grad_x + at, look_up(slope, index, channel, channels, SEGMENTS, PER_CHANNEL) * gradient, inside)
    if slope_sums is not None:
        spot, exists = spot_of(channel, channels, PER_CHANNEL, CHANNELS)
        product = gradient * value
        for j in range(SEGMENTS):
            tl.store(slope_sums + spot, total_of(tl.where(index == j, product, 0.0), PER_CHANNEL), exists)
            tl.store(intercept_sums + spot, total_of(tl.where(index == j, gradient, 0.0), PER_CHANNEL), exists)
            spot += spots


@triton.jit
def load_parts(parts, start, unit, tiles, units, TILES: tl.constexpr):
    """(TILES, UNITS) of the parts of shape (tiles, units), 0 outside."""
    tile = (start + tl.arange(0, TILES)[:, None]).to(tl.int64)
    return tl.load(parts + tile * units + unit, (tile < tiles) & (unit < units), 0.0).to(tl.float64)


@triton.jit
def merge_kernel(
    counts, centers, rests, squares, count, mean, m2, tiles, units, TILES: tl.constexpr, UNITS: tl.constexpr
):
    """Statistics of the union of all tiles, in float64: Chan et al. (1983), for shifted data."""
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[None, :]
    total = tl.zeros((1, UNITS), tl.float64)
    middle = tl.zeros((1, UNITS), tl.float64)
    spread = tl.zeros((1, UNITS), tl.float64)
    for start in range(0, tiles, TILES):
        number = load_parts(counts, start, unit, tiles, units, TILES)
        center = load_parts(centers, start, unit, tiles, units, TILES)
        rest = load_parts(rests, start, unit, tiles, units, TILES)
        total += tl.sum(number, 0, keep_dims=True)
        middle += tl.sum(number * center + rest, 0, keep_dims=True)
    middle /= tl.maximum(total, 1.0)
    for start in range(0, tiles, TILES):
        number = load_parts(counts, start, unit, tiles, units, TILES)
        shift = load_parts(centers, start, unit, tiles, units, TILES) - middle
        rest = load_parts(rests, start, unit, tiles, units, TILES)
        square = load_parts(squares, start, unit, tiles, units, TILES)
        spread += tl.sum(square + shift * (2 * rest + number * shift), 0, keep_dims=True)
    # below 0 only by rounding, where the numbers are equal; NaN stays
    spread = tl.where(spread < 0, 0.0, spread)
    tl.store(count + unit, total, unit < units)
    tl.store(mean + unit, middle, unit < units)
    tl.store(m2 + unit, spread, unit < units)
