"""The model card: metadata that the hub renders, and what a person wants to know, all from a run's records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lma_hf.errors import PushRefusedError
from lma_hf.hub import card_results, card_sections
from lma_hf.hub.card_words import GLUE, GLUE_TITLES, METRICS
from lma_hf.hub.comparison import Comparison
from lma_hf.hub.provenance import Provenance, can_be_hub_id
from lma_hf.hub.public_records import RESULTS, RUN_CONFIG, without_paths

ENVIRONMENT = "environment.json"
PIPELINE = "text-classification"


@dataclass(frozen=True)
class CardFacts:
    """All that the card is written from.

    Attributes:
        folder: what will be uploaded. name: what the card calls the model. repo_id: None if it is not known yet.
        model: the loaded model. results, config, environment: the run's records, without local paths.
    """

    folder: Path
    name: str
    repo_id: str | None
    model: Any
    results: dict
    config: dict
    environment: dict
    comparison: Comparison
    provenance: Provenance

    @property
    def dataset(self) -> str:
        """Hub id of the dataset, or the name of a folder."""
        return GLUE if self.config.get("task_name") else self.config["dataset"]

    @property
    def task_title(self) -> str:
        """What people call the task: "SST-2", or the name of a dataset of one's own."""
        return GLUE_TITLES.get(self.config.get("task_name"), self.results["task"])


def build_card(folder, *, model, comparison, provenance=None, repo_id=None):
    """The model card of a run, not yet saved: `build_card(...).save(folder / "README.md")`.

    Args:
        folder: the folder as it will be uploaded: model, code, results.json, run_config.yaml and environment.json, and
            activation_curves.png if the card is to show it. What the card says is there, is there.
        model: the loaded model. comparison: a `Comparison`, such as `lma_hf.cli.card_rows.compare_run` makes.
        provenance: a `Provenance`, such as `inherit` finds; None: nothing is known.
        repo_id: where the model will be on the hub, for the lines that load it; None: the folder's name.
    Returns: `huggingface_hub.ModelCard`; its `validate()` asks the hub.
    Raises: PushRefusedError if a record is missing or unreadable, or its scores are not those of the comparison.
    """
    folder = Path(folder)
    facts = CardFacts(
        folder=folder,
        name=(repo_id or folder.resolve().name).rpartition("/")[2],
        repo_id=repo_id,
        model=model,
        results=_read(folder / RESULTS, ("task", "metrics", "training", "num_processes")),
        config=_read(folder / RUN_CONFIG, ("dataset", "seed", "learning_rate")),
        environment=_read(folder / ENVIRONMENT, ("date", "python", "versions")),
        comparison=comparison,
        provenance=provenance or Provenance(),
    )
    if facts.results["metrics"] != comparison.student.scores:
        raise PushRefusedError(f"{RESULTS} has other scores than the comparison; compare the run that is pushed")
    sections = [*card_results.sections(facts), *card_sections.sections(facts)]
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _read(path, needed):
    """A record of the run, without local paths. Args: needed: keys that the card cannot do without."""
    # not YAML for both: PyYAML takes JSON's 1e-05 for text
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        values = load(path.read_text(encoding="utf-8"))
        missing = [key for key in needed if key not in values]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise _refused(f"{path.name} of the run cannot be read: {reason}") from error
    if missing:
        raise _refused(f"{path.name} of the run has no {missing[0]}")
    return without_paths(values)


def _refused(what):
    return PushRefusedError(f"{what}; push the output_dir of a finished teach or distill run")


def _metadata(facts):
    """The YAML block. What is not known is left out."""
    provenance = facts.provenance
    metrics = next(iter(facts.results["metrics"].values()))
    return ModelCardData(
        language=provenance.language or ("en" if facts.config.get("task_name") else None),
        license=provenance.license,
        license_name=provenance.license_name,
        license_link=provenance.license_link,
        library_name="transformers",
        pipeline_tag=PIPELINE,
        base_model=provenance.base_model,
        datasets=[facts.dataset] if _is_on_hub(facts) else None,
        metrics=[METRICS[name][0] for name in metrics],
        tags=_tags(facts),
        model_name=facts.name,
        eval_results=_eval_results(facts),
    )


def _is_on_hub(facts):
    return "/" in facts.dataset and can_be_hub_id(facts.dataset)


def _tags(facts):
    activation = facts.comparison.student.activation
    made = "distillation" if "teacher" in facts.results else None
    return [tag for tag in ("lma_hf", made, activation) if tag]


def _eval_results(facts):
    """One result for each split, metric and seed; the first of each is that of the weights in the folder."""
    runs = facts.comparison.student.runs
    return [
        EvalResult(
            task_type=PIPELINE,
            task_name="Text Classification",
            dataset_type=facts.dataset,
            dataset_name=f"GLUE {facts.task_title}" if facts.config.get("task_name") else facts.task_title,
            dataset_config=facts.config.get("task_name") or facts.config.get("dataset_config"),
            dataset_split=split,
            metric_type=METRICS[metric][0],
            metric_name=_metric_name(facts, metric, seed, is_this=scores is facts.comparison.student.scores),
            metric_value=value,
        )
        for seed, scores in runs.items()
        for split, metrics in scores.items()
        for metric, value in metrics.items()
    ]


def _metric_name(facts, metric, seed, is_this):
    title = METRICS[metric][1]
    notes = [] if seed is None else [f"seed {seed}" if is_this else f"seed {seed}, other weights"]
    if facts.config.get("max_eval_samples"):
        notes.append(f"{facts.config['max_eval_samples']} random rows")
    return f"{title[0].upper()}{title[1:]}" + (f" ({', '.join(notes)})" if notes else "")
