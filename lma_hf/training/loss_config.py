"""What a distillation minimises: the part of `DistillConfig` that says so."""

import math
from dataclasses import dataclass
from typing import Literal

from lma_hf.distillation.objective import FEATURES
from lma_hf.distillation.schedules import parse_schedules
from lma_hf.errors import ConfigError
from lma_hf.training.options import check_not_negative, check_positive, option

WEIGHTS = tuple(f"{part}_loss_weight" for part in ("task", "distill", *FEATURES))
# without which an option would have no effect
NEEDS = {
    "temperature": "distill_loss_type kl",
    **dict.fromkeys(("hidden_cosine_layers", "hidden_cosine_tokens"), "hidden_cosine_loss_weight"),
    "attention_loss_type": "attention_loss_weight",
    **dict.fromkeys(("relation_heads", "relation_layer"), "relation_loss_weight"),
    "max_unlabelled_samples": "unlabelled_dataset",
}
SCHEDULED = ("temperature", "replacement_rate", *WEIGHTS)


@dataclass(kw_only=True)
class LossConfig:
    """Losses, their weights and schedules, and what else the student may learn from; see docs/losses.md."""

    temperature: float = option(2.0, "softens the teacher's and the student's logits")
    task_loss_weight: float = option(0.3, "weight of the loss against the labels")
    distill_loss_weight: float = option(0.7, "weight of the loss against the teacher's logits")
    distill_loss_type: Literal["kl", "mse"] = option("kl", "soft targets, or squared error of the logits")
    hidden_loss_weight: float = option(0.0, "weight of the hidden-state loss along the layer map")
    hidden_cosine_loss_weight: float = option(0.0, "weight of 1 - cosine of the hidden states")
    hidden_cosine_layers: Literal["last", "all"] = option("last", "which layers of the layer map the cosine is of")
    hidden_cosine_tokens: Literal["all", "first"] = option("all", "which tokens the cosine is of; first: [CLS]")
    attention_loss_weight: float = option(0.0, "weight of the attention loss along the layer map")
    attention_loss_type: Literal["mse", "kl"] = option("mse", "of the scores before the softmax, or of the softmax")
    relation_loss_weight: float = option(0.0, "weight of the query, key and value relations of the last layer")
    relation_heads: int | None = option(None, "heads of the relations; unset: the teacher's attention heads")
    relation_layer: int | None = option(None, "teacher layer (from 0) of the relations; unset: by the layer map")
    feature_stage: float = option(0.0, "share of the run with hidden, attention and relation losses only; then none")
    schedules: list[str] = option(
        [], "moving temperature, replacement_rate or weights: NAME=linear|cosine:FROM:TO[:UNTIL]"
    )
    replacement_rate: float = option(1.0, "chance that a student layer stands in for its teacher layers (Theseus)")
    activation_warmup_steps: int = option(0, "steps in which each FFN first learns the output of the teacher's")
    extra_teachers: list[str] = option([], "further teachers whose logits are averaged with those of teacher")
    teacher_average: Literal["mean", "median"] = option("mean", "how the logits of several teachers are averaged")
    teacher_weights: list[str] | None = option(None, "weights in the mean, that of teacher first; unset: all alike")
    unlabelled_dataset: str | None = option(None, "texts that are distilled on without labels: folder or hub id")
    max_unlabelled_samples: int | None = option(None, "use a random subset of so many unlabelled rows")

    def check_losses(self):
        """Raises: ConfigError if a value is not allowed, or nothing is left to minimise."""
        check_positive(self, "temperature", "relation_heads", "max_unlabelled_samples")
        check_not_negative(self, *WEIGHTS, "activation_warmup_steps")
        schedules = self.resolved_schedules
        temperature = schedules.get("temperature")
        if temperature and not min(temperature.start, temperature.end) > 0:
            raise ConfigError("schedules has a temperature of 0, allowed are numbers above 0")
        self._check_effects(schedules)
        self._check_replacement(schedules)
        self._check_stages()
        self._check_teachers()

    @property
    def resolved_schedules(self):
        """Name -> `Schedule`."""
        return parse_schedules(self.schedules, SCHEDULED)

    @property
    def resolved_teacher_weights(self):
        """The weights as floats, or None. Raises: ConfigError if one is none, or they do not fit the teachers."""
        if self.teacher_weights is None:
            return None
        try:
            weights = [float(text) for text in self.teacher_weights]
        except ValueError:
            weights = []
        fits = len(weights) == len(self.extra_teachers) + 1 and self.teacher_average == "mean"
        if not (fits and all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
            raise ConfigError(
                f"teacher_weights is {self.teacher_weights} for {len(self.extra_teachers) + 1} teachers and the "
                f"{self.teacher_average}, allowed is one number from 0 for each, not all 0, and teacher_average mean"
            )
        return weights

    @property
    def weighted_parts(self):
        """Names of the losses that count at some time of the run."""
        moving = {name: max(schedule.start, schedule.end) for name, schedule in self.resolved_schedules.items()}
        return [name.removesuffix("_loss_weight") for name in WEIGHTS if moving.get(name, getattr(self, name)) > 0]

    @property
    def replaces_modules(self):
        """Whether teacher layers stand in for the student's at some time of the run."""
        return self.replacement_rate < 1 or "replacement_rate" in self.resolved_schedules

    def _check_effects(self, schedules):
        """Raises: ConfigError if an option is set that would have no effect."""
        given = [f"{part}_loss_weight" for part in self.weighted_parts]
        given += [f"distill_loss_type {self.distill_loss_type}"]
        given += ["unlabelled_dataset"] if self.unlabelled_dataset is not None else []
        for name, needed in NEEDS.items():
            value, moves = getattr(self, name), name in schedules
            if needed not in given and (moves or value != getattr(LossConfig, name)):
                seen = "has a schedule" if moves else f"is {value!r}"
                raise ConfigError(f"{name} {seen}, without effect but with {needed}; set that too, or drop {name}")

    def _check_replacement(self, schedules):
        moving = schedules.get("replacement_rate")
        rates = [self.replacement_rate] if moving is None else [moving.start, moving.end]
        wrong = [rate for rate in rates if not 0 <= rate <= 1]
        if wrong:
            raise ConfigError(f"replacement_rate is {wrong[0]}, allowed are 0 to 1")
        features = set(self.weighted_parts) & set(FEATURES)
        if self.replaces_modules and features:
            # a layer that is replaced has the teacher's own states, and nothing to learn from them
            raise ConfigError(
                f"replacement_rate goes with task and distill losses only; set {min(features)}_loss_weight to 0"
            )

    def _check_stages(self):
        parts = self.weighted_parts
        if not parts:
            raise ConfigError("all loss weights are 0; give one of them a weight above 0")
        if not 0 <= self.feature_stage < 1:
            raise ConfigError(f"feature_stage is {self.feature_stage}, allowed are 0 up to but not including 1")
        if self.feature_stage and not (set(parts) & set(FEATURES) and set(parts) - set(FEATURES)):
            raise ConfigError(
                f"feature_stage is {self.feature_stage}, but weighted are only {', '.join(parts)}; two stages need "
                f"one of {', '.join(FEATURES)} and one of task, distill"
            )

    def _check_teachers(self):
        if not self.extra_teachers and (self.teacher_average != "mean" or self.teacher_weights is not None):
            raise ConfigError("teacher_average and teacher_weights are for several teachers; give extra_teachers")
        _ = self.resolved_teacher_weights
