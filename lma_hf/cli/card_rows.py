"""What a model card compares: a run, its teacher, a baseline on the same path, and other seeds of the same recipe."""

import dataclasses
import json
from pathlib import Path

from lma_hf.cli.loading import load_data, load_tokenizer_and_model
from lma_hf.cli.parser import parse_config
from lma_hf.compare.activation_benchmark import kernel_of
from lma_hf.compare.profiling import count_parameters, environment, folder_size_mb, measure_latency
from lma_hf.data.glue import resolve_task
from lma_hf.errors import ConfigError
from lma_hf.hub.card_words import activation_title
from lma_hf.hub.comparison import ComparedModel, Comparison
from lma_hf.hub.public_records import without_paths
from lma_hf.training.checkpoint import RESULTS, RUN_CONFIG
from lma_hf.training.config import DistillConfig, TeachConfig
from lma_hf.training.resume import MAY_DIFFER, PLACES

BATCH_SIZES = (1, 32)
# options that say how things are run, but not what comes out
INCIDENTAL = MAY_DIFFER - PLACES | {"teacher_cache", "seed"}
# options of the activation itself
ACTIVATION = {"activation", "num_segments", "range_sigmas", "statistics", "init", "continuous", "per_channel"}
ACTIVATION |= {"activation_learning_rate", "calibration_batches"}
# without these in common two scores cannot be compared at all
SHARED = {"task_name", "dataset", "dataset_config", "text_columns", "label_column", "validation_split"}
SHARED |= {"max_eval_samples", "teacher", "model_name_or_path"}


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a finished `teach` or `distill` run, with its records."""

    folder: Path
    results: dict
    config: DistillConfig | TeachConfig

    @property
    def activation(self):
        """Name of the student's activation; None of a teacher."""
        return self.results.get("activation", {}).get("name")

    @property
    def recipe(self):
        """Option -> value of all that decides what comes out, besides the seed; paths are their last component."""
        values = {key: value for key, value in dataclasses.asdict(self.config).items() if key not in INCIDENTAL}
        return without_paths(values) | {key: Path(values[key]).name for key in PLACES if key in values}


def read_run(folder):
    """A `Run`. Raises: ConfigError if the folder does not hold the records of a finished run."""
    folder = Path(folder).expanduser()
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{folder / RESULTS} cannot be read: {reason}; give the output_dir of a finished teach or distill run"
        ) from error
    config_class = DistillConfig if "teacher" in results else TeachConfig
    return Run(folder, results, parse_config(config_class, [str(folder / RUN_CONFIG)], prog="lma-hf", description=""))


def compare_run(model_dir, *, teacher=None, baselines=(), other_seeds=(), dataset=None, with_latency=True):
    """Compare a run with its teacher and with other runs, as its model card shows it.

    Scores are those of the runs' results.json; the teacher's are on the same rows, from the run itself.

    Args:
        model_dir: folder of the run. teacher: folder or hub id of its teacher; None: the folder that results.json
            names, if it is still there. baselines: folders of runs with another activation on the same path, one a
            seed. other_seeds: folders of runs that differ in the seed only.
        dataset: where the data is now; None: where the run found it. with_latency: time the models on the CPU, over
            texts of the validation split; without it no data is read, and no standard error is known.
    Returns: `Comparison`. Raises: ConfigError, DataError.
    """
    run = read_run(model_dir)
    seeds = [run, *(check_other_seed(run, read_run(folder)) for folder in other_seeds)]
    others = read_baselines(run, baselines)
    teacher = teacher or _teacher_folder(run)
    sources = {"student": run.folder, "teacher": teacher, "baseline": others and others[0].folder}
    loaded = {role: load_tokenizer_and_model(str(path), role) for role, path in sources.items() if path}
    models = {role: model for role, (_, model) in loaded.items()}
    config = dataclasses.replace(run.config, dataset=dataset) if dataset else run.config
    timing = time_models(models, loaded["student"][0], config) if with_latency else {"latency_ms": {}}
    latency_ms = timing.pop("latency_ms")
    return Comparison(
        student=_row(_title(run), seeds, models["student"], latency_ms.get("student", {})),
        best_metric=run.results["best_metric"],
        teacher=_teacher_row(run, teacher, models.get("teacher"), latency_ms.get("teacher", {})),
        baseline=_row(_title(others[0]), others, models["baseline"], latency_ms.get("baseline", {}))
        if others
        else None,
        baseline_differences=_differences(run, others[0], ACTIVATION) if others else {},
        is_pair=_is_pair(run.config),
        **timing,
    )


def check_other_seed(run, other):
    """`other`, if it is `run` with another seed. Raises: ConfigError if it is not."""
    differences = _differences(run, other)
    if differences:
        key, (mine, theirs) = next(iter(differences.items()))
        raise ConfigError(
            f"{other.folder} is not {run.folder} with another seed: {key} is {theirs!r} there and {mine!r} here; give "
            "runs of the same recipe"
        )
    if other.config.seed == run.config.seed:
        raise ConfigError(f"{other.folder} has the seed {run.config.seed} of {run.folder}; give runs with other seeds")
    return other


def read_baselines(run, folders):
    """The runs of a baseline, the one with the seed of `run` first. Raises: ConfigError if they do not compare."""
    others = sorted((read_run(folder) for folder in folders), key=lambda other: other.config.seed != run.config.seed)
    for other in others:
        wrong = {key: values for key, values in _differences(run, other).items() if key in SHARED}
        if wrong or other.activation == run.activation:
            key, (mine, theirs) = next(iter(wrong.items()), ("activation", (run.activation, other.activation)))
            raise ConfigError(
                f"{other.folder} is no baseline of {run.folder}: {key} is {theirs!r} there and {mine!r} here; a "
                "baseline has another activation and the same teacher and data"
            )
    for other in others[1:]:
        check_other_seed(others[0], other)
    return others


def _differences(run, other, ignored=()):
    """Option -> (value of run, value of other) where two recipes differ."""
    mine, theirs = run.recipe, other.recipe
    keys = [key for key in dict.fromkeys([*mine, *theirs]) if key not in ignored]
    return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}


def _teacher_folder(run):
    """The teacher's folder as results.json names it, if it is there."""
    name = run.results.get("teacher", {}).get("name")
    return name if name and Path(name).expanduser().is_dir() else None


def _title(run):
    """What the table calls a run's model."""
    return f"student with {activation_title(run.activation)}" if run.activation else "this model"


def _row(name, runs, model, latency_ms):
    """A `ComparedModel` of runs that differ in their seed only; the first is the one that `model` is of."""
    results = runs[0].results
    return ComparedModel(
        name=name,
        activation=runs[0].activation,
        runs={run.config.seed: run.results["metrics"] for run in runs},
        num_layers=getattr(model.config, "num_hidden_layers", None),
        num_parameters=results["num_parameters"],
        size_mb=results["size_mb"],
        latency_ms=latency_ms,
    )


def _teacher_row(run, source, model, latency_ms):
    """The teacher with its scores on the run's rows; only those if it is not at hand. None: there is no teacher."""
    if "teacher" not in run.results:
        return None
    scores = {None: run.results["teacher"]["metrics"]}
    if model is None:
        return ComparedModel("teacher", None, scores)
    is_here = Path(source).expanduser().is_dir()
    return ComparedModel(
        name="teacher",
        activation=None,
        runs=scores,
        num_layers=getattr(model.config, "num_hidden_layers", None),
        num_parameters=count_parameters(model),
        size_mb=folder_size_mb(Path(source).expanduser()) if is_here else None,
        latency_ms=latency_ms,
    )


def _is_pair(config):
    return len(resolve_task(config).text_columns) == 2


def time_models(models, tokenizer, config):
    """Time the models on the CPU, taking turns, over texts of the first validation split.

    Returns: the fields of `Comparison` that this tells, and latency_ms: role -> batch size -> median.
    """
    splits, task = load_data(config, with_train=False)
    make_batch, mean_tokens = batches_of(splits[task.validation_splits[0]], task, tokenizer, config.max_length)
    kernel = kernel_of(models["student"])
    return {
        "latency_ms": measure_latency(models, make_batch, BATCH_SIZES),
        "num_examples": {split: len(splits[split]) for split in task.validation_splits if split in splits},
        "mean_tokens": mean_tokens,
        "kernel": None if kernel == "torch" else kernel,
        # the models are on the CPU, whatever else the machine has
        "environment": {**environment(), "cuda_device": None},
    }


def batches_of(rows, task, tokenizer, max_length):
    """(batch size -> model inputs, mean number of tokens) over the split's first rows, as many as the largest batch.

    A batch of one holds the row of median length, so that it is an ordinary one.
    """
    first = rows[: max(BATCH_SIZES)]
    texts = list(zip(*(first[column] for column in task.text_columns), strict=True))

    def tokenize(chosen):
        columns = map(list, zip(*chosen, strict=True))
        return tokenizer(*columns, truncation=True, max_length=max_length, padding=True, return_tensors="pt")

    lengths = tokenize(texts)["attention_mask"].sum(1)
    order = (lengths - lengths.median()).abs().argsort(stable=True).tolist()
    texts = [texts[index] for index in order] * max(BATCH_SIZES)
    return lambda size: tokenize(texts[:size]), lengths.float().mean().item()
