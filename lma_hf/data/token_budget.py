"""Batches by a budget of padded tokens in place of a number of rows."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from lma_hf.errors import DataError

# rows of a global batch are a multiple of it, so that any number of processes that divides it gets equal shares
ROW_MULTIPLE = 8


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of rows of similar lengths, each of at most `tokens_per_batch` tokens once it is padded.

    Rows are sorted by padded length, those of one padded length at random, cut into global batches, and these come
    in a random order. A global batch is the work of one optimizer step: `num_shares` batches (processes times
    accumulation steps) of the same number of rows, so that the mean of their losses is the mean over the rows. Only
    the shortest rows can make a smaller global batch; rows of it are repeated until its shares are equal. The global
    batches depend on tokens_per_batch * num_shares alone, where num_shares divides 8 and that last batch.

    Args:
        lengths: tokens of every row.
        pad_to_multiple_of: row lengths are rounded up to it.
        generator: draws another order for every pass.
    Raises: DataError if 8 of the longest rows, or one a share where there are more shares, exceed the budget.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens_per_batch: int,
        num_shares: int,
        generator: torch.Generator,
        pad_to_multiple_of: int | None = None,
    ):
        multiple = pad_to_multiple_of or 1
        self.padded = -(torch.as_tensor(lengths) // -multiple) * multiple
        self.num_shares, self.generator = num_shares, generator
        self.bounds = self._plan(tokens_per_batch * num_shares, math.lcm(ROW_MULTIPLE, num_shares))

    def _plan(self, budget: int, multiple: int) -> list[tuple[int, int]]:
        descending = self.padded.sort(descending=True).values.tolist()
        bounds, start = [], 0
        while start < len(descending):
            rows = budget // (descending[start] * multiple) * multiple
            if rows == 0:
                allowed = math.ceil(descending[start] * multiple / self.num_shares)
                raise DataError(
                    f"tokens_per_batch is {budget // self.num_shares}; allowed are {allowed} and more, as the longest "
                    f"row has {descending[start]} tokens and {multiple} rows make an optimizer step of "
                    f"{self.num_shares} batches"
                )
            bounds.append((start, min(start + rows, len(descending))))
            start += rows
        return bounds

    def __len__(self) -> int:
        return len(self.bounds) * self.num_shares

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = torch.randperm(len(self.padded), generator=self.generator)
        order = shuffled[self.padded[shuffled].argsort(descending=True, stable=True)].tolist()
        for index in torch.randperm(len(self.bounds), generator=self.generator).tolist():
            start, stop = self.bounds[index]
            rows = order[start:stop]
            missing = -len(rows) % self.num_shares
            rows += (rows * self.num_shares)[:missing]
            share = len(rows) // self.num_shares
            yield from (rows[low : low + share] for low in range(0, len(rows), share))
