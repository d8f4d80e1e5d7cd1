"""A probe's results as a Markdown table, and the words that table and picture share."""


def markdown(results):
    """The tables of a probe: errors beside the reference's, widths of equal error, learning rates that were chosen."""
    reference = results["reference"]
    return "\n".join(
        [
            "Share of the FFN's output that a narrow FFN leaves unexplained (geometric mean over layers and seeds), "
            f"and how many % it differs from that of {reference} (95 % interval over layers, of three or more).",
            "",
            *_table(results["errors"], "width", "{} units", _error_cell, reference),
            "",
            f"Units with which an activation is as good as {reference} with those above the column.",
            "",
            *_table(results["worth"], "reference_width", f"{reference} {{}}", _worth_cell, reference),
            "",
            "Learning rates of weights and activation that were chosen (*: at the end of what was tried).",
            "",
            *_table(results["learning_rates"], "width", "{} units", _rates_cell, reference),
            "",
        ]
    )


def _table(rows, key, title, cell, reference):
    """Lines of a table with a line for each activation and a column for each value of `key`."""
    columns = list(dict.fromkeys(row[key] for row in rows))
    lines = [
        f"| activation | {' | '.join(title.format(column) for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in dict.fromkeys(row["activation"] for row in rows):
        cells = {row[key]: cell(row, name == reference) for row in rows if row["activation"] == name}
        lines.append(f"| {name} | {' | '.join(cells[column] for column in columns)} |")
    return lines


def _error_cell(row, is_reference):
    if is_reference:
        return f"{row['error']:.4f}"
    ratio, low, high = (percent(row[key]) for key in ("ratio", "low", "high"))
    return f"{row['error']:.4f} ({ratio}{interval(low, high)})"


def _worth_cell(row, is_reference):
    if is_reference:
        return f"{row['reference_width']}"
    if row["width"] is None:
        return f"{row['beyond']} than probed"
    low, high = (None if row[key] is None else f"{row[key]:.0f}" for key in ("low", "high"))
    saved = percent(row["width"] / row["reference_width"])
    return f"{row['width']:.0f}{interval(low, high)}, {saved} %"


def _rates_cell(row, _):
    weights = f"{row['learning_rate']:g}{'*' * row['learning_rate_at_edge']}"
    if row["activation_learning_rate"] is None:
        return weights
    return f"{weights}, {row['activation_learning_rate']:g}{'*' * row['activation_learning_rate_at_edge']}"


def percent(ratio):
    """A ratio as the difference from 1 in %, with its sign; None as it is."""
    return None if ratio is None else f"{100 * (ratio - 1):+.1f}"


def interval(low, high):
    """ " [low, high]", or nothing where there is none."""
    return "" if low is None else f" [{low}, {high}]"
