import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn import metrics as sk

from lma_hf.data.glue import custom_task, get_task
from lma_hf.data.metrics import compute_metrics
from lma_hf.errors import DataError

MRPC, COLA, STSB, MNLI = (get_task(name) for name in ("mrpc", "cola", "stsb", "mnli"))
THREE = custom_task("three", ["text"], "label", label_names=["a", "b", "c"])
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=20, deadline=None)


def classes(seed, count, num_labels):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, num_labels)).astype(np.float32), rng.integers(num_labels, size=count)


@quick
@given(SEEDS, st.integers(2, 60))
def test_class_metrics_equal_sklearn(seed, count):
    logits, labels = classes(seed, count, 2)
    labels[:2] = 0, 1
    predictions = logits.argmax(1)
    result = compute_metrics(MRPC, logits, labels) | compute_metrics(COLA, logits, labels)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions), abs=1e-12)
    assert result["f1"] == pytest.approx(sk.f1_score(labels, predictions, zero_division=0.0), abs=1e-12)
    assert result["matthews_correlation"] == pytest.approx(sk.matthews_corrcoef(labels, predictions), abs=1e-12)


@quick
@given(hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-5, 5, width=32), unique=True), SEEDS)
def test_correlations_equal_scipy(logits, seed):
    labels = np.random.default_rng(seed).uniform(0, 5, size=len(logits)).astype(np.float32)
    result = compute_metrics(STSB, logits[:, None], labels)
    x, y = logits.astype(np.float64), labels.astype(np.float64)
    assert result["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert result["spearmanr"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert result == compute_metrics(STSB, logits, labels)


def test_f1_of_more_than_two_classes_is_the_macro_mean():
    task = dataclasses.replace(THREE, metrics=("f1",))
    logits, labels = classes(0, 50, 3)
    assert compute_metrics(task, logits, labels) == {"f1": sk.f1_score(labels, logits.argmax(1), average="macro")}


def test_results_are_plain_floats():
    result = compute_metrics(MNLI, *classes(0, 20, 3))
    assert list(result) == ["accuracy"]
    assert type(result["accuracy"]) is float


@pytest.mark.parametrize("task", [MRPC, COLA])
@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_everywhere_gives_numbers_without_warnings(task, predicted, label):
    result = compute_metrics(task, np.eye(2)[[predicted] * 5], np.full(5, label))
    assert all(np.isfinite(value) for value in result.values())


@pytest.mark.parametrize(("logits", "labels"), [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1], [2])])
def test_undefined_correlations_are_zero_and_logged(logits, labels, caplog):
    result = compute_metrics(STSB, np.array(logits, np.float32), np.array(labels, np.float32))
    assert result == {"pearson": 0.0, "spearmanr": 0.0}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize(
    ("task", "logits", "labels", "message"),
    [
        (MRPC, np.zeros((4, 3)), np.zeros(4), r"shape \(4, 3\) and labels \(4,\); task 'mrpc' needs \(rows, 2\)"),
        (MRPC, np.zeros((4, 2)), np.zeros(5), r"shape \(4, 2\) and labels \(5,\)"),
        (MRPC, np.zeros((0, 2)), np.zeros(0), "at least 1 row"),
        (STSB, np.zeros((4, 2)), np.zeros(4), r"task 'stsb' needs \(rows, 1\)"),
        (MRPC, np.array([[0, 0], [0, np.nan]]), np.zeros(2), "logits of row 1 are .*nan.*finite numbers"),
        (STSB, np.array([np.inf, 0]), np.zeros(2), "logits of row 0 are inf"),
    ],
)
def test_logits_that_do_not_fit_are_refused(task, logits, labels, message):
    with pytest.raises(DataError, match=message):
        compute_metrics(task, logits, labels)


def test_nothing_is_written_to_the_cache_and_callers_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    logits, labels = classes(1, 30, 2)
    expected = compute_metrics(MRPC, logits, labels)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: compute_metrics(MRPC, logits, labels), range(8)))
    assert results == [expected] * 8
    assert not (tmp_path / "cache").exists()
