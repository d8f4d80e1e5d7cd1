"""Figures of training runs as a table: what a run of the benchmark of training took, and how good its student is."""

import math
import statistics


def figures_of(examples, epochs):
    """Figures of one training. Args: examples: rows times epochs. epochs: (seconds, score) at every epoch's end."""
    seconds, scores = zip(*epochs, strict=True)
    return {
        "examples_per_second": examples / seconds[-1],
        "train_seconds": seconds[-1],
        "score": scores[-1],
        "epoch_seconds": list(seconds),
        "epoch_scores": list(scores),
    }


def seconds_to_score(row, score):
    """Seconds of training at the first epoch's end with at least this score; inf if there is none."""
    epochs = zip(row["epoch_seconds"], row["epoch_scores"], strict=True)
    return next((seconds for seconds, reached in epochs if reached >= score), math.inf)


def training_table(rows):
    """Medians of every contender as a Markdown table.

    "s to" is the time until the final score of the first contender (the median of its rounds) is reached, as seen at
    the ends of epochs.

    Args: rows: dicts with "contender", the keys of `figures_of`, "seconds", "cpu_seconds" and "peak_memory_mb".
    """
    names = list(dict.fromkeys(row["contender"] for row in rows))
    runs = {name: [row for row in rows if row["contender"] == name] for name in names}
    target = statistics.median(row["score"] for row in runs[names[0]])
    heads = ["contender", "examples/s", "training s", f"s to {target:.4f}", "whole job s", "CPU s", "peak memory MB"]
    lines = ["| " + " | ".join([*heads, "score"]) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += ["| " + " | ".join([name, *_cells(runs[name], target)]) + " |" for name in names]
    return "\n".join(lines)


def _cells(runs, target):
    def median(key):
        return statistics.median(run[key] for run in runs)

    to_target = statistics.median(seconds_to_score(run, target) for run in runs)
    return [
        f"{median('examples_per_second'):.1f}",
        f"{median('train_seconds'):.1f}",
        "not reached" if math.isinf(to_target) else f"{to_target:.1f}",
        f"{median('seconds'):.1f}",
        f"{median('cpu_seconds'):.1f}",
        f"{median('peak_memory_mb'):.0f}",
        f"{median('score'):.4f}",
    ]
