"""How a temperature or a loss weight moves over a run: pure functions of the progress in [0, 1]."""

import math
from dataclasses import dataclass

from lma_hf.errors import ConfigError

FORM = "NAME=linear:FROM:TO or NAME=cosine:FROM:TO, with :UNTIL behind it to arrive at that share of the run"


@dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end` and stays there.

    Attributes: kind: "linear", or "cosine" (half a wave: slow, fast, slow). until: share of the run at which it
        arrives, in (0, 1].
    """

    kind: str
    start: float
    end: float
    until: float = 1.0

    def __call__(self, progress):
        """The value at `progress`: optimizer steps done over all steps, in [0, 1]."""
        share = min(progress / self.until, 1.0)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def parse_schedules(texts, names):
    """Name -> `Schedule` of texts such as "temperature=linear:4:1" or "replacement_rate=linear:0.3:1:0.7".

    Args: names: what may have a schedule.
    Raises: ConfigError for another form, an unknown or repeated name, or a value below 0.
    """
    schedules = {}
    for text in texts:
        name, _, form = text.partition("=")
        if name not in names:
            raise ConfigError(f"schedules names {name!r}, allowed are {', '.join(names)}")
        if name in schedules:
            raise ConfigError(f"schedules names {name} twice; give it once")
        schedules[name] = _parse(form, text)
    return schedules


def _parse(form, text):
    kind, *numbers = form.split(":")
    try:
        schedule = Schedule(kind, *map(float, numbers))
    except (TypeError, ValueError):
        raise ConfigError(f"schedules has {text!r}, allowed is {FORM}") from None
    # nan compares false, and inf - inf would be nan later
    in_range = 0 <= schedule.start < math.inf and 0 <= schedule.end < math.inf and 0 < schedule.until <= 1
    if kind not in ("linear", "cosine") or not in_range:
        raise ConfigError(f"schedules has {text!r}, allowed is {FORM}; FROM and TO from 0, UNTIL above 0 up to 1")
    return schedule
