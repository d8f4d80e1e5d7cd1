"""The picture of a probe: error against width, error beside the reference's, and the units that it saves."""

DOTS_PER_INCH = 120


def draw_probe(results, path):
    """Draw three panels: error against width, its difference from the reference's in %, and the units saved in %.

    The bars are the intervals over layers.

    Args: results: what results.json holds. path: the PNG to write.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["activation"] for row in results["errors"]))
    styles = _styles(names, results["reference"])
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    errors, ratios, saved = figure.subplots(1, 3)
    for number, name in enumerate(names):
        shift = 1 + 0.012 * (number - (len(names) - 1) / 2)  # so that bars at one width stand side by side
        rows = [row for row in results["errors"] if row["activation"] == name]
        errors.plot([row["width"] for row in rows], [row["error"] for row in rows], **styles[name], label=name)
        _draw_percent(ratios, rows, "width", "ratio", shift, styles[name])
        rows = [_relative(row) for row in results["worth"] if row["activation"] == name and row["width"] is not None]
        _draw_percent(saved, rows, "reference_width", "width", shift, styles[name])
    _label(errors, ratios, saved, results)
    handles, labels = errors.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def _styles(names, reference):
    """Colour and marker of every activation; the reference is black."""
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors
    styles, number = {}, 0
    for name in names:
        if name == reference:
            styles[name] = {"color": "black", "marker": "o", "linewidth": 1.6, "markersize": 4}
            continue
        line = "-" if number < len(colours) else "--"
        styles[name] = {"color": colours[number % len(colours)], "linestyle": line, "linewidth": 1.1}
        styles[name] |= {"marker": "sD^v<>pP*X"[number % 10], "markersize": 4}
        number += 1
    return styles


def _relative(row):
    """A row of the worth table with its widths as shares of the reference's."""
    shares = {key: row[key] and row[key] / row["reference_width"] for key in ("width", "low", "high")}
    return {**row, **shares}


def _draw_percent(axes, rows, x, y, shift, style):
    """Ratios as differences from 1 in %, with their intervals."""
    at, values = [row[x] * shift for row in rows], [100 * (row[y] - 1) for row in rows]
    bars = None
    if rows and rows[0]["low"] is not None:
        bars = [[100 * abs(row[y] - row[end]) for row in rows] for end in ("low", "high")]
    axes.errorbar(at, values, yerr=bars, capsize=2, elinewidth=0.9, **style)


def _label(errors, ratios, saved, results):
    widths = list(dict.fromkeys(row["width"] for row in results["errors"]))
    reference = results["reference"]
    for axes in (errors, ratios, saved):
        axes.set_xscale("log")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xlim(widths[0] / 1.2, widths[-1] * 1.2)
        axes.minorticks_off()
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("hidden units of the narrow FFN")
    saved.set_xlabel(f"hidden units with {reference}")
    errors.set_yscale("log")
    errors.set_title("unexplained share of the FFN's output", fontsize=11)
    ratios.set_title(f"its difference from {reference}'s, %", fontsize=11)
    saved.set_title(f"units needed for {reference}'s error: difference, %", fontsize=11)
