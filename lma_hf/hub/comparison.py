"""What a student is compared with on its model card, and how sure the comparison is."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ComparedModel:
    """One row of the card's table; None is what is not known.

    Attributes:
        name: what the table calls it. activation: name of its FFN activation.
        runs: seed -> split -> metric -> value in [-1, 1]; the model itself first, then runs of the same recipe with
            other seeds. latency_ms: batch size -> median time of a forward pass.
    """

    name: str
    activation: str | None
    runs: Mapping[int | None, Scores]
    num_layers: int | None = None
    num_parameters: int | None = None
    size_mb: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        """The scores of the model itself, not of its other seeds."""
        return next(iter(self.runs.values()))

    def values(self, split: str, metric: str) -> list[float]:
        """One score for each seed."""
        return [scores[split][metric] for scores in self.runs.values()]


@dataclass(frozen=True)
class Comparison:
    """A student, and if there are any its teacher and a student with another activation on the same path.

    Attributes:
        best_metric: the metric that chose the checkpoint, on the first split. is_pair: whether a text is two.
        num_examples: split -> rows that were scored; empty if not known.
        environment: the machine that latencies were measured on, and `kernel`, what computed LMA there.
        mean_tokens: length of the texts that were timed.
        baseline_differences: option -> (student's value, baseline's), besides those of the activation itself.
    """

    student: ComparedModel
    best_metric: str
    teacher: ComparedModel | None = None
    baseline: ComparedModel | None = None
    is_pair: bool = False
    num_examples: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Any] | None = None
    kernel: str | None = None
    mean_tokens: float | None = None
    baseline_differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def models(self) -> list[ComparedModel]:
        """The rows of the table."""
        return [model for model in (self.teacher, self.baseline, self.student) if model is not None]

    @property
    def split(self) -> str:
        """The split on which checkpoints were chosen."""
        return next(iter(self.student.scores))

    def standard_error(self, value: float, split: str, metric: str) -> float | None:
        """How far chance in the choice of rows moves a score; None where there is no simple formula (F1, ...)."""
        rows = self.num_examples.get(split)
        return math.sqrt(value * (1 - value) / rows) if metric == "accuracy" and rows else None

    def difference(self) -> tuple[float, float | None]:
        """(student minus baseline in the best metric, its standard error or None), each the mean over its seeds.

        The error counts the rows as if each model had seen its own, so it is rather too large; where both have
        several seeds it counts those too.
        """
        groups = [model.values(self.split, self.best_metric) for model in (self.student, self.baseline)]
        student, baseline = (statistics.fmean(values) for values in groups)
        errors = [self.standard_error(mean, self.split, self.best_metric) for mean in (student, baseline)]
        if all(len(values) > 1 for values in groups):
            errors += [statistics.stdev(values) / math.sqrt(len(values)) for values in groups]
        known = [error for error in errors if error is not None]
        return student - baseline, math.hypot(*known) if known else None
