"""The part of the model card that says how good and how fast the model is, and how sure that is."""

import statistics

from lma_hf.hub.card_words import (
    ARCHITECTURE_TITLES,
    GLUE,
    METRICS,
    activation_title,
    listing,
    machine,
    markdown_table,
    points,
    score,
)

UNKNOWN = "-"


def sections(facts):
    """Title, summary, results."""
    parts = [f"# {facts.name}", summary(facts), "## Results", results_table(facts), caption(facts)]
    if len(facts.comparison.student.runs) > 1:
        parts.append(seeds_table(facts))
    return [*parts, verdict(facts)]


def summary(facts):
    """What the model is, does and scores, in one paragraph."""
    comparison, config = facts.comparison, facts.model.config
    layers = f"{comparison.student.num_layers}-layer " if comparison.student.num_layers else ""
    what = f"`{facts.name}` is a {layers}{_model_type(config)} that {_purpose(facts)}."
    return " ".join(filter(None, [what, _origin(facts), _activation(facts), _scores(facts)]))


def _model_type(config):
    name = config.architectures[0] if config.architectures else config.model_type
    name = name.removesuffix("ForSequenceClassification")
    return ARCHITECTURE_TITLES.get(name, name)


def _purpose(facts):
    """What it does with a text, in its labels' words."""
    texts = "a pair of texts" if facts.comparison.is_pair else "a text"
    if facts.model.config.num_labels == 1:
        return f"gives {texts} a score ({facts.task_title})"
    names = [f"`{name}`" for _, name in sorted(facts.model.config.id2label.items())]
    return f"labels {texts} as {listing(names, 'or')} ({facts.task_title})"


def _origin(facts):
    teacher = facts.comparison.teacher
    if "teacher" not in facts.results:
        return ""
    depth = f" of {teacher.num_layers} layers" if teacher and teacher.num_layers else ""
    return f"It was distilled from a teacher{depth}."


def _activation(facts):
    recorded = getattr(facts.model.config, "ffn_activation", None)
    if recorded is None or recorded["name"] == recorded["replaced"]:
        return ""
    replaced, title = activation_title(recorded["replaced"]), activation_title(recorded["name"])
    if recorded["name"] != "lma":
        return f"The {replaced} in its feed-forward blocks was replaced by {title}."
    share = "of its own for every unit" if recorded["per_channel"] else "shared by the units of a layer"
    return (
        f"The {replaced} in its feed-forward blocks was replaced by LMA, a learned activation of "
        f"{recorded['num_segments']} linear pieces, {share} "
        "([Xu et al., AAAI 2020](https://arxiv.org/abs/1907.06870))."
    )


def _scores(facts):
    """The best metric on every split, the teacher's beside it."""
    comparison, metric = facts.comparison, facts.comparison.best_metric
    is_share = METRICS[metric][2].endswith("%")
    unit, show = (" %", score) if is_share else ("", "{:.3f}".format)
    said = []
    for split, scores in comparison.student.scores.items():
        teacher = comparison.teacher and comparison.teacher.scores[split][metric]
        beside = f" (teacher: {show(teacher)})" if teacher is not None else ""
        said.append(f"{show(scores[metric])}{unit}{beside} on {_rows(comparison, split)}")
    return f"Its {METRICS[metric][1]} is {listing(said)}."


def _rows(comparison, split):
    rows = comparison.num_examples.get(split)
    return f"the {rows:,} rows of `{split}`" if rows else f"`{split}`"


def results_table(facts):
    """One row a model; standard errors where they are known."""
    comparison = facts.comparison
    rows = []
    for model in comparison.models:
        row = {
            "model": f"**{model.name}**" if model is comparison.student else model.name,
            "layers": UNKNOWN if model.num_layers is None else model.num_layers,
            "parameters": UNKNOWN if model.num_parameters is None else f"{model.num_parameters:,}",
            "size, MB": UNKNOWN if model.size_mb is None else f"{model.size_mb:.2f}",
        }
        for split, metrics in model.scores.items():
            for metric, value in metrics.items():
                row[_heading(comparison, split, metric)] = _cell(comparison, value, split, metric)
        for size in comparison.student.latency_ms:
            row[f"ms, batch {size}"] = f"{model.latency_ms[size]:.1f}" if model.latency_ms else UNKNOWN
        rows.append(row)
    return markdown_table(rows)


def _heading(comparison, split, metric):
    heading = METRICS[metric][2]
    return heading if len(comparison.student.scores) == 1 else f"{heading} ({split.removeprefix('validation_')})"


def _cell(comparison, value, split, metric):
    error = comparison.standard_error(value, split, metric)
    return score(value) + (f" ± {points(error)}" if error is not None else "")


def caption(facts):
    """What the table's numbers are and were measured on."""
    comparison = facts.comparison
    splits = listing([_rows(comparison, split) for split in comparison.student.scores])
    sentences = [f"Scores are on {splits} of {facts.task_title}{_data(facts)}."]
    if "±" in results_table(facts):
        sentences.append("± is the standard error of an accuracy on so many rows; it does not count the seed.")
    sentences.append("Size is that of the weights on disk.")
    if comparison.student.latency_ms:
        sentences.append(f"\n\n{_latency(comparison)}")
    return " ".join(sentences).replace(" \n", "\n")


def _data(facts):
    """Which rows of the task these are, where they are not simply all of the hub's."""
    rows = facts.config.get("max_eval_samples")
    notes = [f"at most {rows:,} random ones"] if rows else []
    if facts.dataset == GLUE != facts.config["dataset"]:
        notes.append(f"a local copy of `{GLUE}`")
    return f" ({', '.join(notes)})" if notes else ""


def _latency(comparison):
    length = f" of {comparison.mean_tokens:.0f} tokens on average" if comparison.mean_tokens else ""
    kernel = f", LMA computed by the kernel `{comparison.kernel}`" if comparison.kernel else ""
    return (
        f"Latency (ms) is the median time of a forward pass in float32 over texts{length}, the models taking turns, "
        f"on {machine(comparison.environment)}{kernel}."
    )


def seeds_table(facts):
    """The best metric of every seed, its mean and standard deviation; of the baseline too if it has several."""
    comparison = facts.comparison
    models = [model for model in (comparison.student, comparison.baseline) if model and None not in model.runs]
    split, metric = comparison.split, comparison.best_metric
    rows = []
    for seed in dict.fromkeys(seed for model in models for seed in model.runs):
        values = {model.name: model.runs.get(seed) for model in models}
        cells = {name: score(scores[split][metric]) if scores else UNKNOWN for name, scores in values.items()}
        rows.append({"seed": seed, **cells})
    for name, function, needed in (("mean", statistics.fmean, 1), ("standard deviation", statistics.stdev, 2)):
        groups = {model.name: model.values(split, metric) for model in models}
        cells = {key: score(function(group)) if len(group) >= needed else UNKNOWN for key, group in groups.items()}
        rows.append({"seed": name, **cells})
    first = next(iter(comparison.student.runs))
    return (
        f"The same recipe with several seeds ({METRICS[metric][2]}, on `{split}`; the weights here are those of seed "
        f"{first}):\n\n{markdown_table(rows)}"
    )


def verdict(facts):
    """What the numbers say about the activation, and no more."""
    comparison = facts.comparison
    name = activation_title(comparison.student.activation)
    if comparison.baseline is None:
        if comparison.student.activation in (None, "gelu"):
            return "Nothing else was trained for comparison."
        return f"No student with another activation was trained for comparison: nothing here says that {name} helps."
    other = activation_title(comparison.baseline.activation)
    difference, error = comparison.difference()
    way = "above" if difference > 0 else "below"
    seeds = "" if len(comparison.student.runs) == 1 else ", mean over the seeds"
    same = (
        "" if comparison.baseline_differences else "Both were trained with the same options but for the activation. "
    )
    said = (
        f"{same}{name} is {points(abs(difference))} points {way} {other} ({METRICS[comparison.best_metric][1]}{seeds})"
    )
    if error is None:
        return f"{said}. How much of that is chance was not measured."
    compared = "more than" if abs(difference) > 2 * error else "less than"
    finding = "" if compared == "more than" else f" There is no evidence here that {name} and {other} differ."
    return f"{said}, {compared} twice the standard error of that difference ({points(error)}).{finding}"
