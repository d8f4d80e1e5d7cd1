"""GLUE's metrics as `evaluate` classes that need no download, thin over scikit-learn and scipy."""

import logging
import tempfile
import warnings
from collections.abc import Callable

import evaluate
import numpy as np
from datasets import Features, Value
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lma_hf.data.glue import Task
from lma_hf.errors import DataError

logger = logging.getLogger(__name__)


class _GlueMetric(evaluate.Metric):
    """Common description; a subclass sets `dtype`, `reference_url` and its docstring, and computes."""

    dtype = "int32"
    reference_url: str

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions and references: one value a row.",
            features=Features({"predictions": Value(self.dtype), "references": Value(self.dtype)}),
            reference_urls=[self.reference_url],
        )


class Accuracy(_GlueMetric):
    """Share of rows whose predicted class is right, in [0, 1]."""

    reference_url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class F1(_GlueMetric):
    """F1 score in [0, 1]: of class 1 with average="binary" (GLUE's), or the mean over classes with "macro"."""

    reference_url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"

    def _compute(self, predictions, references, average: str = "binary") -> dict[str, float]:
        score = sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0.0)
        return {"f1": float(score)}


class MatthewsCorrelation(_GlueMetric):
    """Matthews correlation coefficient in [-1, 1]; 0 where all rows are of one class."""

    reference_url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html"

    def _compute(self, predictions, references) -> dict[str, float]:
        # scikit-learn returns 0 here as well, but with a Python warning about the confusion matrix.
        if len({*predictions, *references}) == 1:
            return {"matthews_correlation": 0.0}
        return {"matthews_correlation": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


class Pearson(_GlueMetric):
    """Pearson correlation in [-1, 1]; 0 with a logged warning where it is not defined."""

    dtype = "float64"
    reference_url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearmanr(_GlueMetric):
    """Spearman rank correlation in [-1, 1]; 0 with a logged warning where it is not defined."""

    dtype = "float64"
    reference_url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"spearmanr": _correlation(stats.spearmanr, predictions, references)}


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearmanr": Spearmanr,
}


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of `task` for a whole split.

    Args:
        logits: of shape (rows, num_labels); (rows,) or (rows, 1) for regression.
        labels: of shape (rows,); class ids, or scores for regression.
    Returns: metric name -> value in [-1, 1], not percent. F1 is that of class 1 for two classes, else the macro mean.
    Raises: DataError where shapes do not fit, there are no rows or a logit is not finite.
    """
    predictions = to_predictions(task, np.asarray(logits), np.asarray(labels))
    results = {}
    # evaluate makes a folder per metric in the user's cache even when all is kept in memory.
    with tempfile.TemporaryDirectory() as scratch:
        for name in task.metrics:
            options = {"average": "macro"} if name == "f1" and task.num_labels > 2 else {}
            metric = METRICS[name](keep_in_memory=True, cache_dir=scratch)
            results |= metric.compute(predictions=predictions, references=labels, **options)
    return results


def to_predictions(task: Task, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class ids, or scores for regression, of shape (rows,).

    Args: as of `compute_metrics`; of `labels` only the shape counts.
    Raises: DataError where shapes do not fit, there are no rows or a logit is not finite.
    """
    rows = len(labels)
    allowed = [(rows, task.num_labels)] + ([(rows,)] if task.is_regression else [])
    if rows == 0 or labels.ndim != 1 or logits.shape not in allowed:
        raise DataError(
            f"logits have the shape {logits.shape} and labels {labels.shape}; task '{task.name}' needs "
            f"(rows, {task.num_labels}) and (rows,) with at least 1 row"
        )
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits.reshape(rows, -1)).all(axis=1))[0])
        raise DataError(f"logits of row {row} are {logits[row]}; finite numbers are needed, check the model")
    return logits.reshape(rows) if task.is_regression else logits.argmax(axis=-1)


def _correlation(function: Callable, predictions: list[float], references: list[float]) -> float:
    value = np.nan
    if len(references) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            value = function(predictions, references).statistic
    if np.isnan(value):
        logger.warning("%s needs two rows that differ, on both sides; using 0.0", function.__name__)
        return 0.0
    return float(value)
