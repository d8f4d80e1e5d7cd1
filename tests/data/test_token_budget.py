"""Batches by a budget of padded tokens: every row once, never over the budget, the same on any number of processes."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_hf.data.collate import StepBatches, make_dataloader
from lma_hf.data.token_budget import TokenBudgetSampler
from lma_hf.errors import DataError


def sampler(lengths, tokens, shares=1, seed=0, multiple=8):
    return TokenBudgetSampler(lengths, tokens, shares, torch.Generator().manual_seed(seed), multiple)


def batches_of(lengths, tokens, shares=1, seed=0):
    return StepBatches(sampler(lengths, tokens, shares, seed), shares)


def global_batches(lengths, tokens, shares, seed=0):
    return [sorted(step) for step in sampler(lengths, tokens, shares, seed)]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120),
    shares=st.sampled_from([1, 2, 3, 4, 8, 12]),
    tokens=st.integers(320, 900),
    seed=st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_every_row_comes_and_no_batch_exceeds_the_budget(lengths, shares, tokens, seed):
    batches = batches_of(lengths, tokens, shares, seed)
    listed = list(batches)
    assert len(listed) == len(batches)
    assert len(listed) % shares == 0
    rows = [row for batch in listed for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in filter(None, listed):
        padded = -(max(lengths[row] for row in batch) // -8) * 8
        assert len(batch) * padded <= tokens
    for low in range(0, len(listed), shares):
        counts = [len(batch) for batch in listed[low : low + shares]]
        assert max(counts) - min(counts) <= 1


def test_global_batches_do_not_depend_on_the_shares():
    lengths = torch.randint(3, 60, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = global_batches(lengths, 2048, 1)
    assert len({len(batch) for batch in expected}) > 3
    for shares in (2, 4, 8):
        assert global_batches(lengths, 2048 // shares, shares) == expected
    shards = [list(BatchSamplerShard(batches_of(lengths, 1024, 2), 2, index)) for index in range(2)]
    assert [sorted(left + right) for left, right in zip(*shards, strict=True)] == expected


def test_passes_differ_in_order_and_company_but_not_in_number():
    lengths = [10, 20] * 100
    batches = sampler(lengths, 512)
    first, second = list(batches), list(batches)
    assert len(first) == len(second)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert list(sampler(lengths, 512)) == first
    assert list(sampler(lengths, 512, seed=1)) != first
    # batches of the two lengths come mixed
    kinds = [lengths[batch[0]] for batch in first]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))


@pytest.mark.parametrize(("shares", "allowed"), [(1, 320), (2, 160), (16, 40)])
def test_too_small_a_budget_is_refused_with_the_smallest_that_is_not(shares, allowed):
    sampler([33, 5], allowed, shares)
    with pytest.raises(
        DataError, match=f"is {allowed - 1}; allowed are {allowed} and more, as the longest row has 40"
    ):
        sampler([33, 5], allowed - 1, shares)


def test_loader_pads_within_the_budget_and_carries_other_columns(tiny_tokenizer):
    rows = [{"input_ids": [5] * (i % 30 + 2), "labels": i % 2, "teacher_row": i} for i in range(200)]
    loader = make_dataloader(Dataset.from_list(rows), tiny_tokenizer, 32, shuffle=True, seed=0, tokens_per_batch=512)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(batch["input_ids"].numel() <= 512 for batch in batches)
    assert sorted(torch.cat([batch["teacher_row"] for batch in batches]).tolist()) == list(range(200))
    for batch in batches:
        lengths = (batch["input_ids"] != tiny_tokenizer.pad_token_id).sum(1)
        assert lengths.tolist() == [row % 30 + 2 for row in batch["teacher_row"].tolist()]
