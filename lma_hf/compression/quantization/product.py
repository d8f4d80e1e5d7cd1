"""Product quantization: the codebook of a matrix by k-means, and the codes of its blocks."""

import dataclasses

import torch

from lma_hf.modeling.schemes_lma import ProductScheme

SAMPLE = 2**16  # blocks that the centroids are fitted to
CHUNK = 2**12  # blocks that are compared with the centroids at once; their distances stay in the cache
BLOCKS_PER_CENTROID = 4  # at least; a small matrix gets a small codebook


def scheme_for(module, scheme):
    """The scheme of one module: with fewer centroids for a small matrix, a power of two up to a quarter of its blocks.

    Args: scheme: for all modules, or {nn.Linear: one, nn.Embedding: another}.
    """
    if isinstance(scheme, dict):
        scheme = next(one for kind, one in scheme.items() if isinstance(module, kind))
    if not isinstance(scheme, ProductScheme):
        return scheme
    worth = scheme.blocks(module.weight).shape[:-1].numel() // BLOCKS_PER_CENTROID
    return dataclasses.replace(scheme, num_centroids=min(scheme.num_centroids, 2 ** max(worth.bit_length() - 1, 0)))


@torch.no_grad()
def product_codes(weight, scheme, seed=0):
    """Blocks of a matrix and the centroids that stand in for them.

    k-means (scikit-learn's, Lloyd's algorithm) on at most 65,536 random blocks; then each block gets the nearest
    centroid. A matrix that has no more different blocks than centroids, such as one that was packed before, keeps
    them. The same result each time, on one number of threads.

    Args: weight: of shape (rows, row length). scheme: a `ProductScheme`.
    Returns: codes (uint8, of shape (rows, blocks)) and codebook (float32 that float16 can hold, of shape
        (num_centroids, block_size)).
    Raises: ValueError if the weight is not finite, in float16.
    """
    # what centroids are in a file
    if not torch.isfinite(weight.half()).all():
        raise ValueError("weights that are not finite, or too large for float16")
    blocks = scheme.blocks(weight.float()).cpu()
    rest = weight.shape[1] % scheme.block_size
    # the zeros that fill up the last block of a row are no weights
    whole = blocks[:, :-1] if rest and blocks.shape[1] > 1 else blocks
    codebook = _codebook(whole.flatten(0, 1), scheme, seed)
    codes = [_nearest(whole, codebook)]
    if whole is not blocks:
        codes.append(_nearest(blocks[:, -1:, :rest], codebook[:, :rest]))
    return torch.cat(codes, dim=1).to(weight.device), codebook.to(weight.device)


def _codebook(blocks, scheme, seed):
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    centroids = _few_blocks(blocks, blocks[chosen], scheme.num_centroids)
    if centroids is None:
        centroids = _k_means(blocks[chosen], scheme.num_centroids, seed)
    codebook = torch.zeros(scheme.num_centroids, scheme.block_size)
    codebook[: len(centroids)] = centroids.half().float()
    return codebook


def _few_blocks(blocks, sample, count):
    """The different blocks if there are no more than `count`, else None."""
    # all of a large embedding are looked at only if the sample gives reason to
    for some in (sample, blocks):
        distinct = some.unique(dim=0)
        if len(distinct) > count:
            return None
    return distinct


def _k_means(blocks, count, seed):
    from sklearn.cluster import KMeans

    kmeans = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit(blocks.numpy())
    return torch.from_numpy(kmeans.cluster_centers_)


def _nearest(blocks, codebook):
    """uint8 of shape blocks.shape[:2]."""
    # the square of the block is the same for all centroids
    squares, columns = codebook.square().sum(1), codebook.T
    chunks = blocks.flatten(0, 1).split(CHUNK)
    codes = [(squares - 2 * chunk @ columns).argmin(1).to(torch.uint8) for chunk in chunks]
    return torch.cat(codes).view(blocks.shape[:2])
