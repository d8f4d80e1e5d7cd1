"""What `lma-hf compress` can be told."""

from dataclasses import dataclass, field, fields
from typing import Literal

from lma_hf.errors import ConfigError
from lma_hf.training.config import DataConfig
from lma_hf.training.options import check_positive, option

ROUNDING, ROUNDING_IN_TRAINING = ("int8", "int4", "int2"), ("qat8", "qat4", "qat2")
TEXTS = ("trim_vocabulary", "calibration_samples")
DATA = tuple(field.name for field in fields(DataConfig))
# where the data of a run is, and how it is read: a command on a run's own data may say it anew
READING = ("dataset", "per_device_eval_batch_size")
# what an option about data is for, besides recipes that train
FOR = {
    **dict.fromkeys(DATA, TEXTS),
    "dataset": (*TEXTS, "score"),
    "per_device_eval_batch_size": ("score",),
    "max_length": ("calibration_samples",),
    "vocabulary_min_count": ("trim_vocabulary",),
}


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
        check_positive(self, "num_train_epochs", "learning_rate", "per_device_eval_batch_size")
        if self.noise_rate is not None and not 0 < self.noise_rate < 1:
            raise ConfigError(f"noise_rate is {self.noise_rate}, allowed are numbers between 0 and 1")
        self._check_effects()
        if self.needs_texts:
            super().__post_init__()
        if self.recipe == "float32" and not self.trim_vocabulary:
            raise ConfigError(
                "recipe is 'float32', which leaves the weights as they are; it goes with trim_vocabulary alone"
            )

    def _check_effects(self):
        """Raises: ConfigError if an option is set that would have no effect."""
        effects = {
            "quantize_group_size": self.recipe in (*ROUNDING, *ROUNDING_IN_TRAINING),
            "calibration_samples": self.recipe in ROUNDING,
            "modules_to_not_convert": self.recipe != "float32",
            "trim_vocabulary": not self.trains,
            **dict.fromkeys(("num_train_epochs", "learning_rate", "resume"), self.trains),
            "noise_rate": self.trains and self.recipe in ("pq", "ipq"),
            **{name: any(getattr(self, other) for other in others) for name, others in FOR.items()},
        }
        if self.trains:
            effects |= dict.fromkeys(READING, True)
        for name in self.set_options:
            if not effects.get(name, True):
                raise ConfigError(self._no_effect(name))

    def _no_effect(self, name):
        value = getattr(self, name)
        if name not in FOR:
            way = {"pq": " that trains" if self.trains else " without num_train_epochs"}.get(self.recipe, "")
            return f"recipe is {self.recipe!r}{way}, which has no {name}; drop it"
        if self.trains:
            return f"recipe is {self.recipe!r}, which trains with the run's data, but {name} is {value!r}; drop it"
        return f"{name} is {value!r}, which only {' or '.join(FOR[name])} has use for; set that, or drop it"

    @property
    def set_options(self):
        """Name -> value of every option that is not as it is by default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def trains(self):
        """Whether the model is trained on."""
        return self.recipe in (*ROUNDING_IN_TRAINING, "ipq") or (self.recipe == "pq" and bool(self.num_train_epochs))

    @property
    def needs_texts(self):
        """Whether training rows are read."""
        return self.trim_vocabulary or self.calibration_samples is not None
