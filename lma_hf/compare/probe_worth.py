"""What a probe says: errors relative to a reference activation, and how many hidden units an activation is worth."""

import itertools
import math
import statistics

from scipy import stats

CONFIDENCE, MIN_LAYERS = 0.95, 3


def chosen_errors(rows):
    """Arm -> (layer, seed) -> width -> error, of the fits at the learning rates that were chosen."""
    errors = {}
    for row in rows:
        if row["chosen"]:
            cell = errors.setdefault(row["activation"], {}).setdefault((row["layer"], row["seed"]), {})
            cell[row["width"]] = row["error"]
    return errors


def error_table(errors, reference):
    """One row for each arm and width.

    Keys: activation, width, error (geometric mean over layers and seeds); ratio, low, high: to the error of the
    reference in the same layer, with the same seed, as a geometric mean with its interval over layers.
    """
    rows = []
    for name, cells in errors.items():
        for width in next(iter(cells.values())):
            mean, _, _ = log_interval({key: cell[width] for key, cell in cells.items()})
            ratios = {key: cell[width] / errors[reference][key][width] for key, cell in cells.items()}
            ratio, low, high = log_interval(ratios)
            rows.append({"activation": name, "width": width, "error": mean, "ratio": ratio, "low": low, "high": high})
    return rows


def worth_table(errors, reference):
    """One row for each arm and width of the reference: the width at which the arm is as good.

    Keys: activation, reference_width, width (geometric mean over layers and seeds), low, high (over layers). Where the
    arm would have to be narrower or wider than it was probed in some layer, these are None, and `beyond` says
    "narrower" or "wider".
    """
    rows = []
    for name, cells in errors.items():
        for reference_width in next(iter(cells.values())):
            widths = {key: width_at(cell, errors[reference][key][reference_width]) for key, cell in cells.items()}
            row = {"activation": name, "reference_width": reference_width}
            beyond = next((width for width in widths.values() if isinstance(width, str)), None)
            interval = log_interval(widths) if beyond is None else (None, None, None)
            rows.append({**row, **dict(zip(("width", "low", "high"), interval, strict=True)), "beyond": beyond})
    return rows


def rates_table(rows):
    """One row for each arm and width: the learning rates that were chosen, and whether they end what was tried.

    Keys: activation, width, learning_rate, activation_learning_rate (None where nothing learns by it), and each with
    _at_edge, which asks for a wider range.
    """
    table = {}
    for row in rows:
        table.setdefault((row["activation"], row["width"]), []).append(row)
    return [{"activation": name, "width": width, **_chosen_rates(fits)} for (name, width), fits in table.items()]


def _chosen_rates(fits):
    chosen = next(row for row in fits if row["chosen"])
    rates = {}
    for key in ("learning_rate", "activation_learning_rate"):
        tried = {row[key] for row in fits}
        rates |= {key: chosen[key], f"{key}_at_edge": len(tried) > 1 and chosen[key] in (min(tried), max(tried))}
    return rates


def width_at(curve, error):
    """The width at which a curve has an error, by straight lines between its points, both axes logarithmic.

    Args: curve: width -> error. error: > 0.
    Returns: a number, or "narrower" or "wider" where that lies outside the curve.
    """
    points = sorted(curve.items())
    if error > points[0][1]:
        return "narrower"
    for (left, above), (right, below) in itertools.pairwise(points):
        # the first crossing: an error that rises with the width is noise
        if above >= error >= below:
            share = math.log(above / error) / math.log(above / below) if above > below else 0.0
            return left * (right / left) ** share
    return points[0][0] if error == points[0][1] else "wider"


def log_interval(values):
    """Geometric mean and its interval over layers, by Student's t on the logarithms; (mean, low, high).

    Seeds are averaged within a layer first: they change the order of the batches only, and counted as more layers they
    would make the interval too short. Fewer than 3 layers have no interval: low and high are None.

    Args: values: (layer, seed) -> number above 0.
    """
    by_layer = {}
    for (layer, _), value in values.items():
        by_layer.setdefault(layer, []).append(math.log(value))
    logs = [statistics.fmean(seeds) for seeds in by_layer.values()]
    mean = statistics.fmean(logs)
    if len(logs) < MIN_LAYERS:
        return math.exp(mean), None, None
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
