"""The statistics of paired differences against brute force, published values and other formulas."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lma_hf.compare import paired
from lma_hf.compare.paired import analyse_pairs, effect_size, holm, least_sign_flip_p, seeds_needed, sign_flip_p

FIVE = np.array([0.3, 0.5, -0.1, 0.8, 0.2])
# points of accuracies over n rows: sums that are equal, up to rounding only, are frequent, and ties
DIFFERENCES = st.builds(
    lambda pairs, rows: np.array([100 * (one / rows) - 100 * (other / rows) for one, other in pairs]),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=8),
    st.sampled_from([277, 872, 1043]),
)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def brute_force_sign_flip(values):
    """The share of all sign flips whose mean is at least as far from 0."""
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) for signs in flips(len(values))]
    return np.mean([total >= abs(values.sum()) - 1e-9 for total in sums])


def flips(n):
    return itertools.product((-1, 1), repeat=n)


def closed_testing(p_values):
    """Holm's p values as the closed testing procedure with Bonferroni defines them."""
    indices = range(len(p_values))
    families = [family for size in indices for family in itertools.combinations(indices, size + 1)]
    bonferroni = {family: min(1, len(family) * min(p_values[i] for i in family)) for family in families}
    return [max(p for family, p in bonferroni.items() if i in family) for i in indices]


def integrated_power(effect, n, alpha=0.05):
    """Power of the two-sided t test: the normal tail beyond critical * s, integrated over the distribution of s."""
    freedom, shift = n - 1, effect * math.sqrt(n)
    critical = stats.t.ppf(1 - alpha / 2, freedom)

    def beyond(s):
        return (stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)) * density(s)

    def density(s):  # of the root of a chi square by its freedom
        return stats.chi.pdf(s * math.sqrt(freedom), freedom) * math.sqrt(freedom)

    return integrate.quad(beyond, 0, 10, limit=200)[0]


def test_t_interval_and_p_by_hand():
    result = analyse_pairs(FIVE)
    # mean 0.34, squared deviations sum to 0.452, and t of 4 degrees of freedom is 2.7764451 at 97.5 %
    half = 2.7764451 * math.sqrt(0.452 / 4 / 5)
    assert result.mean == pytest.approx(0.34)
    assert result.t_interval == pytest.approx((0.34 - half, 0.34 + half), rel=1e-6)
    assert not result.excludes_zero
    assert analyse_pairs(FIVE + 1).excludes_zero


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=9))
def test_t_test_is_scipys_paired_one(pairs):
    mine, theirs = np.array(pairs, dtype=float).T
    result = analyse_pairs(mine - theirs)
    if result.t_interval is None:
        assert np.ptp(mine - theirs) == 0
        return
    reference = stats.ttest_rel(mine, theirs)
    assert result.p_t == pytest.approx(reference.pvalue)
    assert result.t_interval == pytest.approx(tuple(reference.confidence_interval()))
    assert result.excludes_zero == (result.p_t < 0.05)


@settings(deadline=None, max_examples=50)
@given(DIFFERENCES)
def test_sign_flip_test_is_brute_force(values):
    p = sign_flip_p(values)
    assert p == pytest.approx(brute_force_sign_flip(values))
    assert p >= least_sign_flip_p(len(values)) - 1e-12
    assert sign_flip_p(-values) == pytest.approx(p)
    assert sign_flip_p(values[::-1]) == pytest.approx(p)
    assert sign_flip_p(3 * values) == pytest.approx(p)


def test_five_seeds_cannot_be_significant_in_the_sign_flip_test():
    assert sign_flip_p(FIVE + 100) == least_sign_flip_p(5) == 0.0625
    assert sign_flip_p(np.append(FIVE, 0.1) + 100) == least_sign_flip_p(6) == 0.03125
    assert sign_flip_p(np.zeros(5)) == 1


def test_sign_flip_test_of_many_differences_draws_flips():
    values = np.random.default_rng(1).normal(0.2, 1, 40)
    drawn = np.random.default_rng(2).choice((-1, 1), (200_000, 40)) @ values
    expected = np.mean(np.abs(drawn) >= abs(values.sum()))
    assert sign_flip_p(values) == sign_flip_p(values)
    assert sign_flip_p(values) == pytest.approx(expected, abs=4 * math.sqrt(expected / paired.MAX_FLIPS))
    assert sign_flip_p(values + 10) == least_sign_flip_p(40)


@given(P_VALUES)
def test_holm_is_closed_testing(p_values):
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_effect_size_has_hedges_factor():
    # Hedges' J for 4 degrees of freedom is sqrt(2 / pi)
    assert effect_size(FIVE) == pytest.approx(math.sqrt(2 / math.pi) * 0.34 / math.sqrt(0.452 / 4))
    many = np.tile(FIVE, 100)
    assert effect_size(many) == pytest.approx((1 - 3 / (4 * 499 - 1)) * many.mean() / many.std(ddof=1), rel=1e-6)
    assert effect_size(FIVE[:2]) is None


@pytest.mark.parametrize(("effect", "expected"), [(0.5, 34), (0.8, 15), (1.0, 10), (0.2, 199)])
def test_seeds_needed_as_statsmodels_has_them(effect, expected):
    """`TTestPower().solve_power` of statsmodels 0.15 at alpha 0.05 and power 0.8, rounded up."""
    assert seeds_needed(std=2.0, difference=2.0 * effect) == expected


@pytest.mark.parametrize("effect", [0.3, 0.7, 1.5, 4.0])
def test_seeds_needed_is_the_first_with_that_power(effect):
    n = seeds_needed(1.0, effect)
    assert integrated_power(effect, n) >= 0.8
    assert n == 2 or integrated_power(effect, n - 1) < 0.8


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.0, 0.5) == seeds_needed(0.01, 50.0) == 2
    # the normal approximation is exact there
    assert seeds_needed(1.0, 0.01) == pytest.approx(((1.959964 + 0.841621) / 0.01) ** 2, abs=4)


def test_bootstrap_interval_is_that_of_all_resamples():
    values = np.array([0.0, 0.31, 1.07, 2.4])
    means = [np.mean(resample) for resample in itertools.product(values, repeat=4)]
    expected = np.quantile(means, [0.025, 0.975])
    assert paired.bootstrap_interval(values) == pytest.approx(expected, abs=0.06)
    assert paired.bootstrap_interval(values) == paired.bootstrap_interval(values)


@settings(deadline=None, max_examples=30)
@given(DIFFERENCES, st.integers(-300, 300))
def test_negating_and_shifting_differences(values, shift):
    result, negated, shifted = (analyse_pairs(each) for each in (values, -values, values + shift))
    assert negated.mean == pytest.approx(-result.mean)
    assert shifted.mean == pytest.approx(result.mean + shift)
    if result.t_interval is None:
        return
    assert negated.effect_size == pytest.approx(-result.effect_size)
    assert (negated.p_t, negated.p_sign_flip) == pytest.approx((result.p_t, result.p_sign_flip))
    for name in ("t_interval", "bootstrap_interval"):
        low, high = getattr(result, name)
        assert low - 1e-12 <= result.mean <= high + 1e-12
        assert getattr(shifted, name) == pytest.approx((low + shift, high + shift), abs=1e-9)
    assert negated.t_interval == pytest.approx(tuple(-end for end in result.t_interval[::-1]))


def test_what_cannot_be_said_is_none():
    single, equal = analyse_pairs([0.5]), analyse_pairs([0.1 + 0.2, 0.3, 0.3])
    assert (single.mean, single.std, single.t_interval, single.p_sign_flip) == (0.5, None, None, None)
    assert equal.t_interval is equal.bootstrap_interval is equal.p_t is equal.effect_size is None
    assert equal.p_sign_flip == 0.25
    assert not single.excludes_zero
    assert not equal.excludes_zero


@pytest.mark.slow
def test_coverage_that_the_documentation_states():
    """docs/statistics.md: of five normal differences the t interval covers 95 %, the bootstrap's about 84 %."""
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    results = [analyse_pairs(values) for values in draws]
    t, bootstrap = (
        np.mean([low <= 0 <= high for low, high in (getattr(result, name) for result in results)])
        for name in ("t_interval", "bootstrap_interval")
    )
    assert t == pytest.approx(0.95, abs=0.015)
    assert bootstrap == pytest.approx(0.84, abs=0.025)
