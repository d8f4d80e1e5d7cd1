"""What a handful of paired differences says: intervals, tests, effect size, and how many more would be needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CONFIDENCE, ALPHA, POWER = 0.95, 0.05, 0.8
RESAMPLES = 9_999
MAX_FLIPS = 2**14  # sign-flip tests are exact up to 14 differences, and draw so many flips beyond

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedResult:
    """What differences of pairs say about their mean; None is what a single one, or several equal ones, cannot tell.

    Attributes:
        differences: one a pair, in the unit of the scores. mean, std: of the differences (std with n - 1).
        t_interval, bootstrap_interval: of the mean, at 95 %. p_t, p_sign_flip: two-sided.
        effect_size: see `effect_size`.
    """

    differences: tuple[float, ...]
    mean: float
    std: float | None
    t_interval: Interval | None
    bootstrap_interval: Interval | None
    p_t: float | None
    p_sign_flip: float | None
    effect_size: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the t interval lies on one side of 0."""
        return self.t_interval is not None and (self.t_interval[0] > 0 or self.t_interval[1] < 0)


def analyse_pairs(differences: Sequence[float]) -> PairedResult:
    """Everything this module can say about the mean of the differences, of which there is at least one."""
    values = np.asarray(differences, dtype=np.float64)
    several = len(values) > 1
    # up to rounding; equal differences would make an interval of no length
    differ = several and np.ptp(values) > 1e-9 * np.abs(values).max()
    return PairedResult(
        differences=tuple(values.tolist()),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if several else None,
        t_interval=t_interval(values) if differ else None,
        bootstrap_interval=bootstrap_interval(values) if differ else None,
        p_t=paired_t_p(values) if differ else None,
        p_sign_flip=sign_flip_p(values) if several else None,
        effect_size=effect_size(values) if differ else None,
    )


def t_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean of n >= 2 values."""
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(values: np.ndarray, confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean (Efron 1979), the same for the same seed.

    Too short for few values: docs/statistics.md has its measured coverage.
    """
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="percentile", rng=seed
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_t_p(values: np.ndarray) -> float:
    """Two-sided p of the paired t test that the mean is 0; it belongs to `t_interval`."""
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def sign_flip_p(values: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test (Fisher 1935): how often flipped signs give as large a mean.

    All 2^n flips up to n = 14, else random ones by the seed. It cannot be below `least_sign_flip_p(n)`.
    """
    if not values.any():  # all flips are alike
        return 1.0
    result = stats.permutation_test(
        (values,), _rounded_mean, permutation_type="samples", vectorized=True, n_resamples=MAX_FLIPS, rng=seed
    )
    return float(result.pvalue)


def _rounded_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Means in points to nine digits: those that differ by rounding alone are the same, and tie in the test."""
    return np.round(values.mean(axis=axis), 9)


def least_sign_flip_p(n: int) -> float:
    """The smallest two-sided p that n differences can give: 2 of the 2^n flips, or the first of the drawn ones."""
    return 2 / min(2**n, MAX_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given; valid whatever their dependence."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected.tolist()


def effect_size(values: np.ndarray) -> float | None:
    """Mean over deviation of the differences (Cohen's d_z), times Hedges' correction for few of them (Hedges 1981).

    Returns: None of 2 values, for which there is no correction.
    """
    freedom = len(values) - 1
    if freedom < 2:
        return None
    # by logarithms, since the gamma function overflows at 172
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(correction * values.mean() / values.std(ddof=1))


def seeds_needed(std: float, difference: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """How many pairs find a mean difference with the given power in a two-sided paired t test.

    Args: std: deviation of the paired differences. difference: the one to be found, above 0, in the same unit.
    """
    if std == 0:
        return 2
    effect = difference / std
    # the normal approximation is never above the answer
    n = max(2, math.floor((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) ** 2 / effect**2))
    while t_test_power(effect, n, alpha) < power:
        n += 1
    return n


def t_test_power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that the two-sided paired t test of n pairs rejects; effect: mean over deviation of the differences."""
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n)
    # the lower tail is NaN where it is too thin for scipy
    return float(stats.nct.sf(critical, n - 1, shift) + np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift)))
