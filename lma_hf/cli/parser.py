"""One dataclass as command line: values from a YAML file first, flags override."""

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from lma_hf.errors import ConfigError, LmaHfError

Config = TypeVar("Config")


def parse_config(config_class: type[Config], argv: Sequence[str], *, prog: str, description: str) -> Config:
    """Build the configuration from `[FILE.yaml] [--flag value ...]`; flags override the file, the file the defaults.

    Args:
        config_class: dataclass whose fields carry metadata={"help": ...}, of type str, int, float, bool, Literal, a
            list of str or int, or any of these or None; or dict, which only the file can give.
        argv: the arguments after the verb; the file stands first, or anywhere as --config FILE.
    Raises: ConfigError for anything that cannot be used, a ValueError of __post_init__ included; SystemExit(0)
        after printing the help for -h.
    """
    parser = _ConfigParser(config_class, prog=prog, description=description)
    values = parser.parse_flags(argv)
    file = values.pop("config", None)
    if file is not None:
        values = {**_converted(_read_mapping(Path(file)), parser, config_class, f"{file}: "), **values}
    return _build(config_class, values)


def from_mapping(config_class: type[Config], values: dict[str, Any], where: str) -> Config:
    """Build the configuration from what a YAML file holds. Args: where: how messages call the place.

    Raises: ConfigError as of `parse_config`.
    """
    parser = _ConfigParser(config_class, prog="lma-hf", description=None)
    try:
        return _build(config_class, _converted(values, parser, config_class))
    except LmaHfError as error:
        raise ConfigError(f"{where}: {error}") from error


def _build(config_class: type[Config], values: dict[str, Any]) -> Config:
    for field in dataclasses.fields(config_class):
        if _is_required(field) and field.name not in values:
            raise ConfigError(f"--{field.name} is missing and has no default; give the flag or set it in the YAML")
    try:
        return config_class(**values)
    except LmaHfError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def to_yaml(config: Any, path: Path, command: str) -> None:
    """Write the configuration as YAML that opens with the command that runs it; `parse_config` reads it back."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    header = "# " + " ".join(command.splitlines())
    # Not allow_unicode: PyYAML would then write the line break U+0085 as it is, and read a space.
    Path(path).write_text(f"{header}\n{yaml.safe_dump(values, sort_keys=False)}", encoding="utf-8")


class _ConfigParser(HfArgumentParser):
    """Flags of one dataclass; only those given end up in the result, so that they can override a file."""

    def __init__(self, config_class: type, *, prog: str, description: str):
        self.typed_actions: dict[str, argparse.Action] = {}
        self.flags: list[str] = []
        usage = f"{prog} [FILE.yaml] [--flag VALUE ...]"
        super().__init__(config_class, prog=prog, usage=usage, description=description, allow_abbrev=False)
        self.add_argument("--config", metavar="FILE", help="YAML file with the values that differ from the defaults")

    def add_argument(self, *flags: str, **kwargs: Any) -> argparse.Action:
        required, default = kwargs.pop("required", False), kwargs.pop("default", argparse.SUPPRESS)
        if "type" in kwargs:
            kwargs["type"] = _Converter(kwargs["type"], kwargs.get("choices", ()))
            if required:
                kwargs["help"] += " (required)"
            elif default is not argparse.SUPPRESS:
                kwargs["help"] += f" (default: {default})"
        kwargs["help"] = kwargs["help"].replace("%", "%%")
        action = super().add_argument(*flags, default=argparse.SUPPRESS, **kwargs)
        self.flags += flags
        if action.type is not None:
            self.typed_actions[action.dest] = action
        return action

    def error(self, message: str):
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_flags(self, argv: Sequence[str]) -> dict[str, Any]:
        # Taken by hand: argparse would take the value of an unknown flag for an optional positional argument.
        file = argv[0] if argv and not argv[0].startswith("-") else None
        namespace, unknown = self.parse_known_args(argv if file is None else argv[1:])
        if unknown:
            raise ConfigError(self._describe_unknown(unknown[0]))
        values = vars(namespace)
        if file is not None and "config" in values:
            raise ConfigError(f"two configuration files, {file} and --config {values['config']}; give one")
        return values if file is None else {**values, "config": file}

    def _describe_unknown(self, argument: str) -> str:
        flag = argument.partition("=")[0]
        if flag.startswith("-"):
            return f"unknown flag {flag}; the nearest known one is {_nearest(flag, self.flags)}"
        return f"unexpected argument {argument!r}; only a YAML file may stand without a flag, and it stands first"


@dataclasses.dataclass(frozen=True)
class _Converter:
    """From text to value, for flags and YAML alike, with errors that say the value seen and what is allowed."""

    convert: Callable[[str], Any]
    choices: Sequence[Any]

    @property
    def allowed(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        named = {string_to_bool: "true or false", dict: "a mapping, in the YAML file"}
        return named.get(self.convert, self.convert.__name__)

    def __call__(self, text: str) -> Any:
        try:
            value = self.convert(text)
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {self.allowed}") from None
        if self.choices and value not in self.choices:
            nearest = _nearest(text, map(str, self.choices))
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {self.allowed}; the nearest is {nearest}")
        return value

    def from_yaml(self, value: Any) -> Any:
        if self.convert is dict and isinstance(value, dict):
            return value
        if isinstance(value, (list, dict)) or value is None:
            raise argparse.ArgumentTypeError(f"got {value!r}, expected {self.allowed}")
        # `no`, 1e5 or 007 are no longer what was written once YAML has read them.
        if self.convert is str and not isinstance(value, str):
            raise argparse.ArgumentTypeError(f"got {value!r}, expected str; put the value in quotes")
        return self(str(value))


def _converted(mapping: dict, parser: _ConfigParser, config_class: type, prefix: str = "") -> dict[str, Any]:
    hints = get_type_hints(config_class)
    known = [field.name for field in dataclasses.fields(config_class) if field.init]
    values = {}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(f"{prefix}unknown key {key!r}; the nearest known one is {_nearest(str(key), known)!r}")
        if value is None and type(None) in get_args(hints[key]):
            values[key] = None
            continue
        try:
            values[key] = _convert(parser.typed_actions[key], value)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{prefix}{key}: {error}") from error
    return values


def _convert(action: argparse.Action, value: Any) -> Any:
    if action.nargs != "+":
        return action.type.from_yaml(value)
    if isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a list of {action.type.allowed}")
    # `layer_map: [1, 3]` and `layer_map: uniform` are what one writes first
    items = value if isinstance(value, list) else [value]
    return [action.type.from_yaml(str(item) if type(item) is int else item) for item in items]


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in keys[:index]:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict:
    try:
        content = yaml.load(path.read_bytes(), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}; check the path") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ConfigError(f"{path}, line {line}: {error.problem}; correct the YAML") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}; correct the file") from error
    # A file of comments only changes nothing.
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not `key: value` lines; see --help for the keys")
    return content


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.init and field.default is missing and field.default_factory is missing


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
