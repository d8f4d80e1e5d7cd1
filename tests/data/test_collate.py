import math
from itertools import pairwise

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, DatasetDict
from datasets.utils import are_progress_bars_disabled

from lma_hf.data.collate import LengthGroupedSteps, make_dataloader, token_ids, tokenize_splits
from lma_hf.data.glue import custom_task, get_task
from lma_hf.data.sources import load_splits
from lma_hf.errors import DataError

SINGLE = custom_task("single", ["text"], "label", label_names=["no", "yes"])
PAIR = custom_task("pair", ["text", "other"], "label", label_names=["no", "yes"])


@pytest.fixture(scope="module")
def splits():
    rows = [{"text": "the film " * (i % 9 + 1), "other": f"a story {i}", "label": i % 2} for i in range(100)]
    return DatasetDict({"train": Dataset.from_list(rows)})


@pytest.fixture(scope="module")
def tokenized(splits, tiny_tokenizer):
    return tokenize_splits(splits.remove_columns("other"), SINGLE, tiny_tokenizer, 32)["train"]


def test_the_test_tokenizer_spells_everything(tiny_tokenizer):
    ids = tiny_tokenizer('Zyxwv, it\'s 100% (not) "unknown" ~ a_b@c!')["input_ids"]
    assert tiny_tokenizer.unk_token_id not in ids


def test_single_texts_are_truncated_and_not_padded(splits, tiny_tokenizer):
    train = tokenize_splits(splits.remove_columns("other"), SINGLE, tiny_tokenizer, 8)["train"]
    assert set(train.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert [len(ids) for ids in train["input_ids"]] == [min(8, 2 * (i % 9 + 1) + 2) for i in range(100)]
    assert train["labels"][:] == splits["train"]["label"][:]


def test_pairs_get_both_segments(splits, tiny_tokenizer):
    train = tokenize_splits(splits, PAIR, tiny_tokenizer, 64)["train"]
    expected = tiny_tokenizer(splits["train"][5]["text"], splits["train"][5]["other"])
    assert {key: train[5][key] for key in expected} == dict(expected)
    assert set(train[5]["token_type_ids"]) == {0, 1}


def test_tokenizing_leaves_no_cache_and_no_trace_on_screen(splits, tiny_tokenizer, capfd):
    before = are_progress_bars_disabled()
    result = tokenize_splits(splits, PAIR, tiny_tokenizer, 16)
    assert not result["train"].cache_files
    assert are_progress_bars_disabled() == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("max_length", [7, 513])
def test_max_length_outside_the_limits_is_refused(splits, tiny_tokenizer, max_length):
    with pytest.raises(DataError, match=f"max_length is {max_length}; allowed for this tokenizer: 8 to 512"):
        tokenize_splits(splits, PAIR, tiny_tokenizer, max_length)


def test_each_batch_is_padded_to_its_own_longest_row(tokenized, tiny_tokenizer, monkeypatch):
    for multiple in (None, 8):
        monkeypatch.setattr("lma_hf.data.collate.pad_multiple", lambda multiple=multiple: multiple)
        loader = make_dataloader(tokenized, tiny_tokenizer, 10, shuffle=True, seed=0)
        for batch in loader:
            longest = int(batch["attention_mask"].sum(1).max())
            assert batch["input_ids"].shape[1] == -(-longest // (multiple or 1)) * (multiple or 1)
            assert batch["labels"].dtype == torch.int64


def test_unshuffled_rows_keep_the_dataset_order(tokenized, tiny_tokenizer):
    loader = make_dataloader(tokenized, tiny_tokenizer, 7, shuffle=False, seed=0)
    assert torch.cat([batch["labels"] for batch in loader]).tolist() == tokenized["labels"][:]
    rows = [row[row != tiny_tokenizer.pad_token_id].tolist() for batch in loader for row in batch["input_ids"]]
    assert rows == tokenized["input_ids"][:]


def test_every_pass_has_every_row_in_another_order_that_the_seed_fixes(tokenized, tiny_tokenizer):
    def two_passes(seed):
        loader = make_dataloader(tokenized, tiny_tokenizer, 10, shuffle=True, seed=seed)
        return [[row for batch in loader.batch_sampler for row in batch] for _ in range(2)]

    first, second = two_passes(3)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert two_passes(3) == [first, second]
    assert two_passes(4) != [first, second]


def test_shuffled_batches_group_similar_lengths(tokenized, tiny_tokenizer):
    def padding(shuffle):
        loader = make_dataloader(tokenized, tiny_tokenizer, 4, shuffle=shuffle, seed=0)
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in loader)

    assert padding(shuffle=True) < padding(shuffle=False) / 2


def test_steps_come_in_no_order_of_length():
    lengths = [length for length in range(1, 101) for _ in range(16)]
    steps = LengthGroupedSteps(lengths, 8, torch.Generator().manual_seed(0))
    first, second = ([lengths[step[0]] for step in steps] for _ in range(2))
    for means in first, second:
        # transformers' order is .98 here: 50 steps from long to short, four times
        falling = sum(left >= right for left, right in pairwise(means)) / (len(means) - 1)
        assert 0.35 < falling < 0.65
    assert first != second


def test_global_batches_do_not_depend_on_the_number_of_processes(tokenized, tiny_tokenizer):
    def batches(batch_size):
        loader = make_dataloader(tokenized, tiny_tokenizer, batch_size, shuffle=True, seed=0, total_batch_size=20)
        return loader.batch_sampler

    shards = [list(BatchSamplerShard(batches(10), num_processes=2, process_index=i)) for i in range(2)]
    assert [left + right for left, right in zip(*shards, strict=True)] == list(batches(20))


@pytest.mark.parametrize("rows", [1, 3, 19, 20, 21, 100])
def test_uneven_last_step_is_dealt_out_evenly(tokenized, tiny_tokenizer, rows):
    loader = make_dataloader(
        tokenized.select(range(rows)), tiny_tokenizer, 5, shuffle=True, seed=0, total_batch_size=20
    )
    batches = list(loader.batch_sampler)
    assert len(batches) == len(loader) == 4 * math.ceil(rows / 20)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    for start in range(0, len(batches), 4):
        sizes = [len(batch) for batch in batches[start : start + 4]]
        assert max(sizes) - min(sizes) <= 1
    for numbers, batch in zip(list(loader.batch_sampler), loader, strict=True):
        # no rows: one of padding alone
        assert len(batch["labels"]) == max(len(numbers), 1)
        assert bool(numbers) == bool(batch["attention_mask"].any())


def test_real_pairs_with_scores(glue_dir, tiny_tokenizer):
    splits, task = load_splits(str(glue_dir), get_task("stsb"), ["validation"], max_samples={"validation": 16})
    validation = tokenize_splits(splits, task, tiny_tokenizer, 64)["validation"]
    (batch,) = make_dataloader(validation, tiny_tokenizer, 16, shuffle=False, seed=0)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == splits["validation"]["label"][:]


def test_token_ids_are_those_of_all_batches(tokenized, tiny_tokenizer):
    loader = make_dataloader(tokenized, tiny_tokenizer, 10, shuffle=True, seed=0)
    seen = {token for batch in loader for token in batch["input_ids"].flatten().tolist()}
    assert tiny_tokenizer.pad_token_id in seen
    assert token_ids(tokenized, tiny_tokenizer) == sorted(seen)
