"""Settings of a replaced FFN activation: LMA and the baselines it is compared with."""

import difflib
import math
from dataclasses import asdict, dataclass

STATISTICS = ("batch", "running", "frozen")
INITS = ("relu", "fit")
BASELINES = ("relu", "gelu", "gelu_affine", "prelu", "swish", "aplu")
ACTIVATIONS = ("lma", *BASELINES)
MAX_SEGMENTS = 64


def _check_choice(key, value, allowed):
    if value not in allowed:
        nearest = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{key} is {value!r}, allowed are {', '.join(allowed)}{hint}")


def _check_segments(value):
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= MAX_SEGMENTS:
        raise ValueError(f"num_segments is {value!r}, allowed are whole numbers from 2 to {MAX_SEGMENTS}")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class LMAConfig:
    """Settings of one LMA activation (Xu et al. 2020, arXiv 1907.06870); the defaults are the paper's form.

    Args:
        num_segments: k, the number of linear pieces, 2 to 64.
        range_sigmas: d, the segments span mean - d * std to mean + d * std.
        momentum: weight of the newest batch in the running statistics (PyTorch's sense; the paper's decay is 0.99).
        statistics: where training takes the segment bounds from. "batch": the current (global) batch, as in the
            paper; "running": the running statistics, so that training and inference see the same function;
            "frozen": the running statistics, never updated.
        init: "relu": a ReLU hinged at the mean (paper); "fit": `calibrate_` fits every segment to the activation
            that was replaced.
        continuous: parameters are the heights at the k + 1 knots, so that neighbouring pieces meet
            (PWLU, arXiv 2104.03693).
        per_channel: own statistics and parameters for every unit.
    Raises: ValueError if a value is not allowed.
    """

    num_segments: int = 8
    range_sigmas: float = 3.0
    momentum: float = 0.01
    statistics: str = "batch"
    init: str = "relu"
    continuous: bool = False
    per_channel: bool = False

    def __post_init__(self):
        _check_segments(self.num_segments)
        _check_choice("statistics", self.statistics, STATISTICS)
        _check_choice("init", self.init, INITS)
        if not (_is_number(self.range_sigmas) and 0 < self.range_sigmas < math.inf):
            raise ValueError(f"range_sigmas is {self.range_sigmas!r}, allowed are finite numbers above 0")
        if not (_is_number(self.momentum) and 0 < self.momentum <= 1):
            raise ValueError(f"momentum is {self.momentum!r}, allowed are numbers above 0 and up to 1")

    @property
    def name(self):
        return "lma"


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of a baseline activation: one of BASELINES; aplu has num_segments learnable hinges.

    Raises: ValueError if a value is not allowed.
    """

    name: str
    num_segments: int = 8

    def __post_init__(self):
        _check_choice("activation", self.name, BASELINES)
        _check_segments(self.num_segments)


def resolve_activation(activation):
    """Turn "lma", a baseline's name or a settings object into a settings object.

    Raises: ValueError for an unknown name, TypeError for anything else.
    """
    if isinstance(activation, (LMAConfig, BaselineConfig)):
        return activation
    if not isinstance(activation, str):
        raise TypeError(
            f"activation is a {type(activation).__name__}, allowed are LMAConfig, BaselineConfig and the names "
            + ", ".join(ACTIVATIONS)
        )
    _check_choice("activation", activation, ACTIVATIONS)
    return LMAConfig() if activation == "lma" else BaselineConfig(activation)


def settings_to_dict(settings):
    """Settings as the JSON object that stands in a model's config.json."""
    return {"name": settings.name, **asdict(settings)}


def settings_from_dict(values):
    """Inverse of `settings_to_dict`. Raises: ValueError for an unknown name, TypeError for an unknown key."""
    name = values.get("name")
    _check_choice("activation", name, ACTIVATIONS)
    if name == "lma":
        return LMAConfig(**{key: value for key, value in values.items() if key != "name"})
    return BaselineConfig(**values)
