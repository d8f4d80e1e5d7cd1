"""Activations under comparison, each written as a few words: "gelu", "aplu-8", "lma-16 fit running per_channel"."""

import difflib
from dataclasses import dataclass

from lma_hf.errors import ConfigError
from lma_hf.modeling.configuration_lma import INITS, STATISTICS, BaselineConfig, LMAConfig

# the words of an LMA; what else it can be told is written key=value
WORDS = {
    **{value: {"init": value} for value in INITS},
    **{value: {"statistics": value} for value in STATISTICS},
    "continuous": {"continuous": True},
    "per_channel": {"per_channel": True},
}
NUMBERS = ("range_sigmas", "momentum")


@dataclass(frozen=True)
class Arm:
    """One activation under comparison: its words are its name. Attributes: settings: what they mean."""

    name: str
    settings: LMAConfig | BaselineConfig


def parse_arm(text):
    """The `Arm` that some words describe.

    The first is the activation, with its number of pieces (or hinges) behind a hyphen if that is not 8. An LMA is the
    paper's unless further words say otherwise: fit, running, frozen, continuous, per_channel, range_sigmas=2.5 or
    momentum=0.1.

    Raises: ConfigError for a word that means nothing here.
    """
    kind, *words = text.split() or [""]
    name, hyphen, pieces = kind.partition("-")
    if hyphen and not (pieces.isascii() and pieces.isdigit()):
        raise ConfigError(f"activation {text!r}: {pieces!r} is no number of pieces; write for example {name}-8")
    values = {"num_segments": int(pieces)} if hyphen else {}
    try:
        if name != "lma":
            return Arm(text, BaselineConfig(name, **values, **_no_words(text, words)))
        for word in words:
            values |= _meaning(text, word, values)
        return Arm(text, LMAConfig(**values))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"activation {text!r}: {error}") from error


def parse_arms(texts):
    """An `Arm` for each text. Raises: ConfigError if there is none, one is wrong, or one stands twice."""
    if not texts:
        raise ConfigError("activations is empty; name at least one, such as gelu")
    arms = [parse_arm(" ".join(text.split())) for text in texts]
    names = [arm.name for arm in arms]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"activations names {twice[0]!r} twice; name each once")
    return arms


def _no_words(text, words):
    if words:
        raise ConfigError(f"activation {text!r}: only lma takes further words, not {words[0]!r}; drop it")
    return {}


def _meaning(text, word, values):
    """The settings that a word stands for, none of which may be set already."""
    key, equals, number = word.partition("=")
    if equals and key in NUMBERS:
        try:
            meant = {key: float(number)}
        except ValueError:
            raise ConfigError(f"activation {text!r}: {key} is {number!r}, expected a number") from None
    elif word in WORDS:
        meant = WORDS[word]
    else:
        known = [*WORDS, *(f"{name}=NUMBER" for name in NUMBERS)]
        nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"activation {text!r}: unknown word {word!r}, allowed are {', '.join(known)}; the nearest is {nearest}"
        )
    if meant.keys() & values.keys():
        raise ConfigError(f"activation {text!r}: {word!r} contradicts or repeats a word before it; keep one")
    return meant
