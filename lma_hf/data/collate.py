"""Tokenized splits and the batches made from them."""

from itertools import pairwise

import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import BatchSampler, DataLoader, Sampler
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from lma_hf.data.glue import Task
from lma_hf.data.progress import no_progress_bars
from lma_hf.data.token_budget import TokenBudgetSampler
from lma_hf.errors import DataError

MIN_MAX_LENGTH = 8
# transformers marks "no limit known" by a huge model_max_length (1e30).
NO_LIMIT = 1_000_000
# What tensor cores want of row lengths.
PAD_TO_MULTIPLE_OF = 8


def pad_multiple() -> int | None:
    """What row lengths are rounded up to: 8 on a GPU. A CPU gains nothing by it, and SST-2 would have a quarter more
    tokens (17.3 a row in place of 14.0)."""
    return PAD_TO_MULTIPLE_OF if torch.accelerator.is_available() else None


def tokenize_splits(
    splits: DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> DatasetDict:
    """Replaces the text columns by what the tokenizer makes of them, truncated but not padded.

    Args:
        splits: as `lma_hf.data.sources.load_splits` returns them.
        max_length: in tokens, special ones included; the longer text of a pair is cut first.
    Returns: in-memory splits with "labels", "input_ids" and the tokenizer's other inputs.
    Raises: DataError where max_length is below 8 or above the tokenizer's limit.
    """
    limit = tokenizer.model_max_length if tokenizer.model_max_length < NO_LIMIT else NO_LIMIT
    if not MIN_MAX_LENGTH <= max_length <= limit:
        raise DataError(f"max_length is {max_length}; allowed for this tokenizer: {MIN_MAX_LENGTH} to {limit}")

    def tokenize(batch: dict) -> dict:
        texts = [batch[column] for column in task.text_columns]
        return dict(tokenizer(*texts, truncation=True, max_length=max_length))

    with no_progress_bars():
        tokenized = splits.map(
            tokenize,
            batched=True,
            remove_columns=list(task.text_columns),
            keep_in_memory=True,
            load_from_cache_file=False,
        )
    return tokenized.rename_column("label", "labels")


def sort_by_length(dataset: Dataset) -> Dataset:
    """The tokenized rows, longest first, so that batches hold rows of similar lengths."""
    order = sorted(range(len(dataset)), key=_lengths(dataset).__getitem__, reverse=True)
    return dataset.select(order, keep_in_memory=True)


def _lengths(dataset: Dataset) -> list[int]:
    return pc.list_value_length(dataset.with_format("arrow")[:]["input_ids"]).to_pylist()


def token_ids(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that batches of a tokenized split can hold, padding included."""
    tokens = pc.unique(pc.list_flatten(dataset.with_format("arrow")[:]["input_ids"])).to_pylist()
    return sorted({*tokens, tokenizer.pad_token_id} - {None})


def make_dataloader(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    total_batch_size: int | None = None,
    tokens_per_batch: int | None = None,
) -> DataLoader:
    """Batches of a tokenized split, each padded to its own longest row (and to `pad_multiple`).

    Args:
        batch_size: rows per process.
        shuffle: False keeps the dataset's order. True draws batches of similar lengths in a random order that
            `seed` fixes; every pass over the loader continues with another order.
        total_batch_size: rows over all processes and accumulation steps, `batch_size` by default and a multiple of
            it; any number of processes sees the same global batches, see `StepBatches`.
        tokens_per_batch: shuffled batches have at most so many padded tokens instead of `batch_size` rows, see
            `TokenBudgetSampler`.
    """
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_multiple())
    # from pinned memory a GPU fetches the next batch while it computes; accelerate reads one ahead
    pin = torch.accelerator.is_available()
    if not shuffle:
        return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, pin_memory=pin)
    total = total_batch_size or batch_size
    lengths, generator = _lengths(dataset), torch.Generator().manual_seed(seed)
    if tokens_per_batch:
        steps = TokenBudgetSampler(lengths, tokens_per_batch, total // batch_size, generator, pad_multiple())
    else:
        steps = LengthGroupedSteps(lengths, total, generator)
    batches = StepBatches(steps, total // batch_size)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=Collator(collator, dataset[0]), pin_memory=pin)


class LengthGroupedSteps(Sampler):
    """The rows of every optimizer step, of similar lengths, as lists; the steps come in a random order.

    transformers' LengthGroupedSampler hands out each of its groups (up to 50 steps) from the longest rows to the
    shortest, so that training would always end on short ones.

    Args: lengths: tokens of every row. rows_per_step: one step of a pass may have fewer. generator: draws another
        order for every pass.
    """

    def __init__(self, lengths, rows_per_step, generator):
        self.generator = generator
        rows = LengthGroupedSampler(rows_per_step, lengths=lengths, generator=generator)
        self.steps = BatchSampler(rows, rows_per_step, drop_last=False)

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        steps = list(self.steps)
        for index in torch.randperm(len(steps), generator=self.generator).tolist():
            yield steps[index]


class StepBatches(Sampler):
    """Row numbers of every batch: each optimizer step's rows, dealt out evenly to its batches.

    A step may have fewer rows than the others: none is dropped and none comes twice, but batches get smaller, down to
    no row at all. Processes take turns, as accelerate deals batches out.

    Args: sampler: of the rows of every step, as lists. batches_per_step: processes x accumulation steps.
    """

    def __init__(self, sampler, batches_per_step):
        self.sampler, self.batches_per_step = sampler, batches_per_step

    def __len__(self):
        return len(self.sampler) * self.batches_per_step

    def __iter__(self):
        count = self.batches_per_step
        for step in self.sampler:
            edges = [len(step) * index // count for index in range(count + 1)]
            yield from (step[first:last] for first, last in pairwise(edges))


class Collator:
    """Pads rows to a batch. No rows become one without a real token, for a process that must keep in step.

    Args: pad: turns rows into a batch. stand_in: a row.
    """

    def __init__(self, pad, stand_in):
        self.pad, self.stand_in = pad, stand_in

    def __call__(self, rows):
        batch = self.pad(rows or [self.stand_in])
        if not rows and "attention_mask" in batch:
            batch["attention_mask"].zero_()
        return batch
