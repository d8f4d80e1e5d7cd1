"""Widths of equal error on curves whose answer is known, and intervals against an independent computation."""

import math

import pytest
from scipy import stats

from lma_hf.compare.probe_worth import chosen_errors, error_table, log_interval, rates_table, width_at, worth_table

WIDTHS = (64, 128, 256)
CELLS = [(layer, seed) for layer in (0, 2, 3) for seed in (1, 2)]


def curve(factor):
    """A power law that `factor` times as many units follow: error(width) = (factor * width) ** -0.4."""
    return {width: (factor * width) ** -0.4 for width in WIDTHS}


def rows_of(curves):
    """Rows of a probe from name -> cell -> curve, and a fit at a rate that was not chosen."""
    rates = {"learning_rate": 1e-2, "activation_learning_rate": None}
    for name, cells in curves.items():
        for (layer, seed), errors in cells.items():
            for width, error in errors.items():
                place = {"activation": name, "width": width, "layer": layer, "seed": seed}
                yield {**place, **rates, "tuning_error": error, "error": error, "chosen": True}
                yield {**place, **rates, "learning_rate": 1e-3, "tuning_error": 1, "error": 1, "chosen": False}


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.9, 0.7])
def test_width_of_equal_error_on_a_power_law(factor):
    assert width_at(curve(factor), 128**-0.4) == pytest.approx(128 / factor)


def test_width_outside_the_curve():
    assert width_at(curve(1.1), 64**-0.4) == "narrower"
    assert width_at(curve(0.9), 256**-0.4) == "wider"
    assert width_at(curve(1.0), 64**-0.4) == 64
    assert width_at(curve(1.0), 256**-0.4) == 256


def test_width_on_a_curve_with_noise():
    assert width_at({64: 0.5, 128: 0.5, 256: 0.25}, 0.5) == 64
    # 0.3 lies between 128 and 256, where the error falls from 0.5 to 0.2
    assert width_at({64: 0.4, 128: 0.5, 256: 0.2}, 0.3) == pytest.approx(
        128 * 2 ** (math.log(5 / 3) / math.log(5 / 2))
    )


def test_worth_has_an_interval_over_layers():
    factors = dict(zip(CELLS, (1.05, 1.1, 1.15, 1.2, 1.3, 1.01), strict=True))
    curves = {
        "gelu": {cell: curve(1.0) for cell in CELLS},
        "lma": {cell: curve(factor) for cell, factor in factors.items()},
    }
    table = worth_table(chosen_errors(rows_of(curves)), "gelu")
    row = next(row for row in table if row["activation"] == "lma" and row["reference_width"] == 128)
    layers = [math.log(128 / math.sqrt(one * other)) for one, other in ((1.05, 1.1), (1.15, 1.2), (1.3, 1.01))]
    low, high = stats.ttest_1samp(layers, 0).confidence_interval(0.95)
    assert row["width"] == pytest.approx(128 / math.prod(factors.values()) ** (1 / 6))
    assert (row["low"], row["high"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert row["beyond"] is None
    first = next(row for row in table if row["activation"] == "lma" and row["reference_width"] == 64)
    assert (first["width"], first["beyond"]) == (None, "narrower")
    for row in table:
        assert row["activation"] == "lma" or row["width"] == pytest.approx(row["reference_width"])


def test_errors_are_paired():
    """What layers and seeds have in common does not widen the interval of the difference."""
    hard = dict(zip(CELLS, (1.0, 2.0, 5.0, 9.0, 3.0, 4.0), strict=True))
    curves = {
        name: {cell: {width: factor * hard[cell] * error for width, error in curve(1.0).items()} for cell in CELLS}
        for name, factor in {"gelu": 1.0, "relu": 1.07}.items()
    }
    for row in error_table(chosen_errors(rows_of(curves)), "gelu"):
        ratio = {"gelu": 1.0, "relu": 1.07}[row["activation"]]
        assert (row["ratio"], row["low"], row["high"]) == pytest.approx((ratio, ratio, ratio))
        mean = math.prod(hard.values()) ** (1 / 6) * row["width"] ** -0.4
        assert row["error"] == pytest.approx(ratio * mean)


def test_fewer_than_three_layers_have_no_interval():
    values = {(0, seed): 2.0 + seed for seed in (1, 2, 3)} | {(1, 1): 4.0}
    assert log_interval(values) == (pytest.approx(math.sqrt(60 ** (1 / 3) * 4)), None, None)


def test_rates_at_the_end_of_what_was_tried_are_marked():
    rows = rows_of({"gelu": {(0, 1): curve(1.0)}})
    assert rates_table(list(rows))[0] == {
        "activation": "gelu",
        "width": 64,
        "learning_rate": 1e-2,
        "learning_rate_at_edge": True,
        "activation_learning_rate": None,
        "activation_learning_rate_at_edge": False,
    }
