"""Mean and standard deviation of pre-activations: real tokens only, over the global batch, in float32."""

import torch
import torch.distributed as dist

# Elements that a CPU works on at a time, so that intermediate results stay in its cache (4096 x 1536: 80 ms -> 10 ms)
CHUNK = 2**18


def as_rows(x):
    """x as (rows, channels), also where one of them is 0."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def chunks(*tensors):
    """The tensors as rows of channels, in matching pieces of about CHUNK elements; whole on a GPU and when traced."""
    rows = [as_rows(tensor) for tensor in tensors]
    if torch.compiler.is_compiling() or rows[0].device.type != "cpu" or rows[0].numel() <= CHUNK:
        return [rows]
    count = max(1, CHUNK // rows[0].shape[1])
    return list(zip(*(tensor.split(count) for tensor in rows), strict=True))


def token_statistics(x, mask=None, per_channel=False):
    """Count, mean and sum of squared deviations of `x` over its real tokens.

    Args:
        x: of shape (..., channels).
        mask: of shape x.shape[:-1], nonzero at real tokens; None counts every row.
        per_channel: one statistic a channel instead of one in all.
    Returns: (count, mean, m2), each of shape (channels,) if `per_channel`, else (); at least float32.
    Raises: ValueError if the mask does not fit.
    """
    tensors = (x.detach(),) if mask is None else (x.detach(), real_rows(x, mask)[:, None])
    # autocast would turn products into bfloat16
    with torch.autocast(x.device.type, enabled=False):
        parts = [_chunk_statistics(*part, per_channel=per_channel) for part in chunks(*tensors)]
    return parts[0] if len(parts) == 1 else merge_statistics(*map(torch.stack, zip(*parts, strict=True)))


def _chunk_statistics(rows, real=None, *, per_channel):
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weight = None
    if real is not None:
        weight = real[:, 0].to(rows.dtype)
        # a weight of 0 would not do for padding that is not finite
        rows = rows.masked_fill(~real, 0)
    count = rows.new_tensor(rows.shape[0]) if weight is None else weight.sum()
    total = _column_sums(rows, weight)
    if per_channel:
        count = count.expand_as(total)
    else:
        total, count = total.sum(), count * rows.shape[1]
    mean = total / count.clamp_min(1)
    m2 = _column_sums((rows - mean).square_(), weight)
    return count, mean, m2 if per_channel else m2.sum()


def real_rows(x, mask):
    """The mask as one truth value for each row of x. Raises: ValueError if it does not fit.

    Some models flatten batch and length before the FFN (OPT), others pad the sequence to whole windows (Longformer).
    """
    shape = x.shape[:-1]
    if mask.dim() == 2 == len(shape) and mask.shape[0] == shape[0] and mask.shape[1] < shape[1]:
        mask = torch.nn.functional.pad(mask, (0, shape[1] - mask.shape[1]))
    if mask.shape != shape and shape != (mask.numel(),):
        raise ValueError(
            f"LMA needs an attention mask of shape {tuple(shape)} (batch, length), got {tuple(mask.shape)}; "
            "pass the tokenizer's 2-D mask and leave chunk_size_feed_forward at 0"
        )
    return (mask != 0).reshape(-1)


def _column_sums(rows, weight):
    return rows.sum(0) if weight is None else weight @ rows


def merge_statistics(counts, means, m2s):
    """Statistics of the union of several samples (Chan et al. 1983, parallel variance).

    Args: counts, means, m2s: stacked along dimension 0, one entry a sample.
    Returns: (count, mean, m2) of the union.
    """
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp_min(1)
    m2 = (m2s + counts * (means - mean).square()).sum(0)
    return count, mean, m2


def global_statistics(count, mean, m2):
    """The statistics of the global batch: merged over all processes of the default group, if there are several.

    Every process must call this the same number of times; LMA does so in training only.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count, mean, m2
    mine = torch.stack([count, mean, m2])
    # one after the other along dimension 0: Gloo refuses a stacked output
    everyone = mine.new_empty(dist.get_world_size() * len(mine), *mine.shape[1:])
    dist.all_gather_into_tensor(everyone, mine)
    return merge_statistics(*everyone.unflatten(0, (-1, len(mine))).unbind(1))


def to_std(count, m2):
    """Population standard deviation from a count and a sum of squared deviations, which rounding may put below 0."""
    return (m2.clamp_min(0) / count.clamp_min(1)).sqrt()
