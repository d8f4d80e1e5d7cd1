"""Answers read from a cache against those of the live teacher, and what makes another cache."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import VOCAB, tiny_config, tiny_model
from transformers import DataCollatorWithPadding

from lma_hf import build_student
from lma_hf.data.collate import Collator
from lma_hf.distillation.cache import answer_batch, batches_of, fill
from lma_hf.distillation.fingerprint import (
    RowIndex,
    config_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.store import AnswerStore
from lma_hf.distillation.teacher import TEACHER_ROW, CachedTeacher, Teacher

LAYER_MAP, STATES = [1, 3], (0, 2, 4)
DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(config=tiny_config("bert", 4, **DROPOUT), scale=4.0)


@pytest.fixture(scope="module")
def dataset():
    draw = np.random.default_rng(0)
    rows = [draw.integers(5, VOCAB, draw.integers(1, 20)).tolist() for _ in range(60)]
    rows += rows[:5]
    return Dataset.from_dict(
        {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "labels": [0, 1] * 32 + [0]}
    )


@pytest.fixture(scope="module")
def collate(tiny_tokenizer):
    return DataCollatorWithPadding(tiny_tokenizer, pad_to_multiple_of=8)


@pytest.fixture(scope="module")
def cached(tmp_path_factory, teacher, dataset, collate):
    """(CachedTeacher with hidden states, the dataset with its row numbers)"""
    index, inputs = RowIndex(dataset), dataset.remove_columns("labels")
    store = AnswerStore(tmp_path_factory.mktemp("cache"), {}, index.lengths, 2, (len(STATES), 16), 200)

    def answer(start, stop):
        rows = [index.rows[low:high].tolist() for low, high in batches_of(start, stop, index.lengths, 100)]
        pieces = [answer_batch(Teacher(teacher), collate(inputs[row]), STATES) for row in rows]
        return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]

    fill(store, answer)
    return CachedTeacher(store, STATES), dataset.add_column(TEACHER_ROW, index.positions)


@pytest.fixture
def batches(cached, collate):
    """Batches of shuffled rows, as a loader makes them."""
    shuffled = cached[1].shuffle(seed=1)
    return [collate(shuffled[start : start + 16]) for start in range(0, len(shuffled), 16)]


def test_answers_are_the_live_ones_within_rounding(teacher, cached, batches):
    for batch in batches:
        logits, states = cached[0](batch, True)
        live_logits, live_states = Teacher(teacher)(batch, True)
        torch.testing.assert_close(logits, live_logits, rtol=1e-5, atol=1e-5)
        real = batch["attention_mask"].bool()
        for index in STATES:
            # half precision has 11 bits
            torch.testing.assert_close(states[index][real].float(), live_states[index][real], rtol=1e-3, atol=1e-3)
            assert not states[index][~real].any()


def test_padding_on_the_left_is_filled_on_the_right(cached, batches):
    mask = batches[0]["attention_mask"]
    _, right = cached[0](batches[0], True)
    _, left = cached[0]({**batches[0], "attention_mask": mask.flip(1)}, True)
    for index in STATES:
        assert torch.equal(left[index][mask.flip(1).bool()], right[index][mask.bool()])


def test_a_row_that_stands_in_for_none_has_no_states(cached, batches, dataset, collate):
    empty = Collator(collate, cached[1][3])([])
    logits, states = cached[0](empty, True)
    assert logits.isfinite().all()
    assert not any(states[index].any() for index in STATES)


def test_logits_only_are_not_asked_for_states(cached, batches):
    logits, states = cached[0]({TEACHER_ROW: batches[0][TEACHER_ROW]})
    assert states is None
    assert logits.shape == (16, 2)


def test_loss_of_a_batch_is_that_of_the_live_teacher(teacher, cached, batches):
    student = build_student(teacher, 2, LAYER_MAP, activation="relu").eval()
    make = partial(DistillationObjective, layer_map=LAYER_MAP, hidden_loss_weight=1.0)
    for batch in batches:
        live, read = make(Teacher(teacher))(student, batch), make(cached[0])(student, batch)
        for name in ("task_loss", "distill_loss"):
            assert abs(live[name] - read[name]) < 1e-6 * max(1, live[name])
        torch.testing.assert_close(read["hidden_loss"], live["hidden_loss"], rtol=1e-4, atol=1e-6)


def test_student_with_another_tokenizer_reads_the_same_logits(cached, batches):
    """The row number alone finds the answer; hidden states have to be paired token by token, and say so."""
    batch = batches[0]
    other = {"input_ids": torch.randint(5, 30, (16, 7)), "attention_mask": torch.ones(16, 7, dtype=torch.long)}
    other |= {"labels": batch["labels"], TEACHER_ROW: batch[TEACHER_ROW]}
    student = tiny_model(config=tiny_config("bert", 1, vocab_size=30))
    parts = DistillationObjective(cached[0])(student, other)
    assert parts["loss"].isfinite()
    with pytest.raises(ValueError, match="tokenizers must agree"):
        cached[0](other, True)


def test_row_positions_do_not_depend_on_the_order(dataset):
    index, shuffled = RowIndex(dataset), dataset.shuffle(seed=3)
    again = RowIndex(shuffled)
    assert again.fingerprint == index.fingerprint
    assert again.lengths.tolist() == index.lengths.tolist() == sorted(index.lengths, reverse=True)
    where = {tuple(ids): position for ids, position in zip(dataset["input_ids"], index.positions, strict=True)}
    assert [where[tuple(ids)] for ids in shuffled["input_ids"]] == again.positions.tolist()
    # rows that occur twice are answered once, and labels do not matter
    assert len(index.rows) == len({tuple(ids) for ids in dataset["input_ids"]}) < len(dataset)
    relabelled = dataset.remove_columns("labels").add_column("labels", [1] * len(dataset))
    assert RowIndex(relabelled).fingerprint == index.fingerprint


def test_other_rows_have_another_fingerprint(dataset):
    known = {RowIndex(dataset).fingerprint}
    changed = dataset.to_dict()
    changed["input_ids"][7][0] += 1
    typed = {**dataset.to_dict(), "token_type_ids": [[1] * len(ids) for ids in dataset["input_ids"]]}
    for other in (Dataset.from_dict(changed), dataset.select(range(59)), Dataset.from_dict(typed)):
        fingerprint = RowIndex(other).fingerprint
        assert fingerprint not in known
        known.add(fingerprint)


def test_teachers_are_told_apart(tmp_path, teacher):
    teacher.save_pretrained(tmp_path)
    same = type(teacher).from_pretrained(tmp_path)
    assert weights_fingerprint(same) == weights_fingerprint(teacher)
    assert config_fingerprint(same) == config_fingerprint(teacher)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.classifier.bias[0] = torch.nextafter(other.classifier.bias[0], torch.tensor(9.0))
    assert weights_fingerprint(other) != weights_fingerprint(teacher)
    other.config.layer_norm_eps *= 2
    assert config_fingerprint(other) != config_fingerprint(teacher)


def test_tokenizers_are_told_apart(tiny_tokenizer):
    known = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a film"], truncation=True, max_length=9, padding=True)
    assert tokenizer_fingerprint(tiny_tokenizer) == known
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["zyx"])
    assert tokenizer_fingerprint(other) != known
