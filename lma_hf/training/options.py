"""What the configurations are made of: options with help texts, and checks of their values."""

from dataclasses import field

from lma_hf.errors import ConfigError


def option(default, text):
    """A dataclass field with a default and a help text."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


def check_names(key, values, allowed):
    """Raises: ConfigError if a list that is set names nothing, a thing twice, or something that is not allowed."""
    if values is None:
        return
    wrong = [f"names {value!r}" for value in values if value not in allowed]
    twice = [f"names {value!r} twice" for value in values if values.count(value) > 1]
    if wrong or twice or not values:
        seen = [*wrong, *twice, "is empty"][0]
        raise ConfigError(f"{key} {seen}, allowed are {', '.join(map(str, allowed))}")


def check_positive(config, *keys):
    """Raises: ConfigError if a value that is set is not above 0."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"{key} is {value}, allowed are numbers above 0")


def check_seed(config):
    """Raises: ConfigError if the seed is none that every random number generator takes."""
    if not 0 <= config.seed < 2**31:
        raise ConfigError(f"seed is {config.seed}, allowed are 0 to {2**31 - 1}")


def check_not_negative(config, *keys):
    """Raises: ConfigError if a value is below 0 or NaN."""
    for key in keys:
        value = getattr(config, key)
        if not value >= 0:
            raise ConfigError(f"{key} is {value}, allowed are 0 and numbers above")
