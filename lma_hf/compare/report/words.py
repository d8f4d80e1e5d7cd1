"""How a report says it: numbers, names, and a verdict for every comparison."""

from collections.abc import Sequence

from lma_hf.compare.paired import ALPHA, Interval, least_sign_flip_p
from lma_hf.compare.study_statistics import AVERAGE, Difference, Study
from lma_hf.hub.card_words import GLUE_TITLES, METRICS, count, listing

UNKNOWN = "-"
MAX_MISSING = 20  # lines


def task_title(task: str) -> str:
    """A task's name in headings."""
    return GLUE_TITLES.get(task, task)


def metric_heading(metric: str) -> str:
    """A metric with its unit."""
    return METRICS[metric][2] if metric in METRICS else metric


def signed(value: float) -> str:
    """A difference in points."""
    return f"{value:+.2f}"


def interval(ends: Interval | None) -> str:
    """Both ends of an interval."""
    return UNKNOWN if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def p_value(p: float | None) -> str:
    """With three digits at most: what stands behind them says nothing."""
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(difference: Difference, wanted: float) -> str:
    """What one comparison says, in a sentence. Args: wanted: the difference that `seeds_needed` is for, in points."""
    result = difference.result
    what = f"{difference.variant.name} minus {difference.baseline.name} ({_basis(difference)})"
    said = [f"{what}: {signed(result.mean)} points"]
    if result.t_interval is not None:
        said.append(f"95 % interval {interval(result.t_interval)}")
        said.append(f"p {_equals(result.p_t)} (sign-flip {p_value(result.p_sign_flip)})")
    sentence = f"{', '.join(said)}: {conclusion(difference)}."
    return sentence if result.excludes_zero else f"{sentence}{_power(difference, wanted)}"


def conclusion(difference: Difference) -> str:
    """What the t interval allows to say."""
    result = difference.result
    if len(result.differences) < 2:
        return "one seed says nothing about chance"
    if result.t_interval is None:
        return "all seeds differ by the same, which leaves nothing to judge chance by"
    if not result.excludes_zero:
        return "no evidence of a difference"
    direction = "better" if result.mean > 0 else "worse"
    if difference.p_t_holm < ALPHA:
        return f"evidence that it is {direction}"
    return (
        f"{direction} if this comparison was planned alone; not after Holm's correction over "
        f"{difference.num_compared} (p {_equals(difference.p_t_holm)})"
    )


def _power(difference: Difference, wanted: float) -> str:
    """Whether a difference that matters would have been found."""
    needed = difference.seeds_needed
    if needed is None:
        return ""
    if needed <= len(difference.seeds):
        return f" {wanted:g} points would probably have been found."
    return f" To find {wanted:g} points it would take {needed:,} seeds."


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _basis(difference: Difference) -> str:
    tasks = count(len(difference.tasks), "task") if difference.task == AVERAGE else task_title(difference.task)
    return f"{tasks}, {count(len(difference.seeds), 'seed')}"


def notes(differences: Sequence[Difference], wanted: float) -> list[str]:
    """What a reader must know to read the tables."""
    said = [
        "Scores are on validation, 100 times the metric, as mean ± deviation over the seeds. Below each stands the "
        "distillation loss on train, mean of the last epoch: an activation adds expressiveness, which can show only "
        "where the student underfits.",
        "Differences are paired: same seed, same rows, same data order. The interval is Student's t interval at "
        f"95 %. It is about a new seed on the same rows, not about new rows. Bold: p < {ALPHA:g} by the paired t test "
        "after Holm's correction: of a task over the tasks of its row, of an average over all variants that are "
        "compared with the same baseline.",
        _sign_flip_note(differences),
        f'"Seeds for {wanted:g}" is how many seeds a paired t test needs to find {wanted:g} points with a chance of '
        "80 %, if the deviation of the differences is the one seen here.",
    ]
    return [note for note in said if note]


def _sign_flip_note(differences: Sequence[Difference]) -> str:
    """That few seeds cannot be significant in the sign-flip test, where it is so."""
    numbers = sorted({len(each.seeds) for each in differences} - {1})
    tasks = max((len(each.tasks) for each in differences), default=1)
    too_few = [number for number in numbers if least_sign_flip_p(number) > ALPHA / tasks]
    if not too_few:
        return ""
    least = listing(f"{least_sign_flip_p(number):.4g} with {number} seeds" for number in too_few)
    corrected = (
        f", which Holm's correction multiplies by {tasks} for the clearest of {tasks} tasks" if tasks > 1 else ""
    )
    return (
        f"However large the difference, the p of the exact sign-flip test is at least {least}{corrected}. On average "
        "it is therefore also made over the pairs of all tasks and seeds, which asks whether there is any difference "
        "on any task."
    )


def missing_words(study: Study) -> list[str]:
    """What the plan has and the study lacks, a line for each variant and the tasks that lack the same seeds."""
    lacking: dict[tuple[str, str], list[int]] = {}
    for variant, task, seed in study.missing():
        lacking.setdefault((str(variant), task_title(task)), []).append(seed)
    tasks: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (variant, task), seeds in lacking.items():
        tasks.setdefault((variant, tuple(seeds)), []).append(task)
    lines = [
        f"{variant} on {listing(titles)}: {'seeds' if len(seeds) > 1 else 'seed'} {listing(seeds)}"
        for (variant, seeds), titles in tasks.items()
    ]
    if len(lines) <= MAX_MISSING:
        return lines
    return [*lines[:MAX_MISSING], f"and so on, {count(len(study.missing()), 'cell')} in all"]
