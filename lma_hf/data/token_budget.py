"""Batches by a budget of padded tokens in place of a number of rows."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from lma_hf.errors import DataError

# rows of a step are a multiple of it, so that any number of processes that divides it sees the same steps
ROW_MULTIPLE = 8


class TokenBudgetSampler(Sampler[list[int]]):
    """The rows of every optimizer step, of similar lengths; dealt out evenly to `batches_per_step` batches, each of
    these has at most `tokens_per_batch` tokens once it is padded.

    Rows are sorted by padded length, those of one padded length at random, cut into steps, and these come in a random
    order. Only the shortest rows can make a smaller step. Where batches_per_step divides 8, the steps depend on
    tokens_per_batch * batches_per_step alone.

    Args:
        lengths: tokens of every row.
        batches_per_step: processes x accumulation steps.
        generator: draws another order for every pass.
        pad_to_multiple_of: row lengths are rounded up to it.
    Raises: DataError if 8 of the longest rows, or one a batch where there are more batches, exceed the budget.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens_per_batch: int,
        batches_per_step: int,
        generator: torch.Generator,
        pad_to_multiple_of: int | None = None,
    ):
        multiple = pad_to_multiple_of or 1
        self.padded = -(torch.as_tensor(lengths) // -multiple) * multiple
        self.batches_per_step, self.generator = batches_per_step, generator
        self.bounds = self._plan(tokens_per_batch * batches_per_step, math.lcm(ROW_MULTIPLE, batches_per_step))

    def _plan(self, budget: int, multiple: int) -> list[tuple[int, int]]:
        descending = self.padded.sort(descending=True).values.tolist()
        bounds, start = [], 0
        while start < len(descending):
            rows = budget // (descending[start] * multiple) * multiple
            if rows == 0:
                allowed = math.ceil(descending[start] * multiple / self.batches_per_step)
                raise DataError(
                    f"tokens_per_batch is {budget // self.batches_per_step}; allowed are {allowed} and more, as the "
                    f"longest row has {descending[start]} tokens and {multiple} rows make an optimizer step of "
                    f"{self.batches_per_step} batches"
                )
            bounds.append((start, min(start + rows, len(descending))))
            start += rows
        return bounds

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = torch.randperm(len(self.padded), generator=self.generator)
        order = shuffled[self.padded[shuffled].argsort(descending=True, stable=True)].tolist()
        for index in torch.randperm(len(self.bounds), generator=self.generator).tolist():
            start, stop = self.bounds[index]
            yield order[start:stop]
