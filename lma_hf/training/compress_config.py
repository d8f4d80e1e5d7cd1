"""What `lma-hf compress` can be told."""

from dataclasses import dataclass, field
from typing import Literal

from lma_hf.errors import ConfigError
from lma_hf.training.config import DataConfig
from lma_hf.training.options import check_positive, option

UNTRAINED = ("calibration_samples", "trim_vocabulary")  # options of `compress` that are for a model as it is


@dataclass(kw_only=True)
class CompressConfig(DataConfig):
    """Make a saved model small: weights of few bits, packed, and a vocabulary cut to what a task's texts have."""

    model_dir: str = field(metadata={"help": "saved sequence classification model: folder or hub id"})
    output_dir: str = field(metadata={"help": "folder for the compressed model and its tokenizer"})
    recipe: Literal["int8", "int4", "int2", "pq", "float32", "qat8", "qat4", "qat2", "ipq"] = option(
        "int8",
        "bits of a weight; pq: 8 bits for 2 weights of a linear layer, 4 of an embedding, trained on if "
        "num_train_epochs says so; ipq: layer by layer, trained on after each; qat8, qat4, qat2: trained on with that "
        "rounding",
    )
    quantize_group_size: int | None = option(None, "neighbours in a row that share a scale; unset: the whole row")
    modules_to_not_convert: list[str] | None = option(
        None, "modules that stay in float32, or names of what they lie in; unset: the head"
    )
    calibration_samples: int | None = option(
        None,
        "random training rows that linear layers are rounded for (GPTQ); unset: to the nearest level, without data",
    )
    trim_vocabulary: bool = option(False, "keep the tokens alone that the task's training texts have")
    vocabulary_min_count: int = option(1, "how often a token has to occur to be kept")
    score: bool = option(
        False, "model_dir is a finished run: score the result on the run's validation data, so that it can be pushed"
    )
    num_train_epochs: int | None = option(
        None, "recipes that train: passes over the run's training rows, with ipq for each layer; unset: 1, pq: 0"
    )
    learning_rate: float | None = option(None, "recipes that train: of the quantized weights; unset: the run's")
    noise_rate: float | None = option(
        None, "pq and ipq that train: before that, as many passes with such a share of weights left out (Quant-Noise)"
    )
    resume: bool = option(False, "recipes that train: go on where the same command was interrupted")
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")
    trust_remote_code: bool = option(False, "run Python code that comes with the model; only for sources you trust")

    def __post_init__(self):
        check_positive(self, "quantize_group_size", "vocabulary_min_count", "calibration_samples")
        check_positive(self, "num_train_epochs", "learning_rate")
        if self.noise_rate is not None and not 0 < self.noise_rate < 1:
            raise ConfigError(f"noise_rate is {self.noise_rate}, allowed are numbers between 0 and 1")
        self._check_recipe()
        if self.needs_texts:
            super().__post_init__()
        elif named := self.task_name or self.text_columns:
            raise ConfigError(
                f"{named!r} names texts, which trim_vocabulary and calibration_samples alone need; set one, or drop it"
            )

    def _check_recipe(self):
        without = {
            "pq": ("quantize_group_size", "calibration_samples"),
            "ipq": ("quantize_group_size",),
            "float32": ("quantize_group_size", "calibration_samples"),
        }.get(self.recipe, ())
        without += UNTRAINED if self.trains else ("num_train_epochs", "learning_rate", "resume")
        if self.recipe not in ("pq", "ipq") or not self.trains:
            without += ("noise_rate",)
        if wrong := [key for key in without if getattr(self, key)]:
            way = {"pq": " that trains" if self.trains else " without num_train_epochs"}.get(self.recipe, "")
            raise ConfigError(f"recipe is {self.recipe!r}{way}, which has no {wrong[0]}; drop it")
        if self.recipe == "float32" and not self.trim_vocabulary:
            raise ConfigError(
                "recipe is 'float32', which leaves the weights as they are; it goes with trim_vocabulary alone"
            )

    @property
    def trains(self):
        """Whether the model is trained on."""
        return self.recipe in ("qat8", "qat4", "qat2", "ipq") or (self.recipe == "pq" and bool(self.num_train_epochs))

    @property
    def needs_texts(self):
        """Whether training rows are read."""
        return self.trim_vocabulary or self.calibration_samples is not None
