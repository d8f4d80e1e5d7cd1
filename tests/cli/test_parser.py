from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_hf.cli.parser import parse_config, to_yaml
from lma_hf.errors import ConfigError, SurgeryError

HELP = {"help": "50 % of it"}


@dataclass
class Config:
    task_name: str = field(metadata={"help": "the task"})
    learning_rate: float = field(default=1e-4, metadata=HELP)
    num_epochs: int = field(default=3, metadata=HELP)
    fp16: bool = field(default=False, metadata=HELP)
    shuffle: bool = field(default=True, metadata=HELP)
    activation: Literal["lma", "gelu"] = field(default="lma", metadata=HELP)
    max_length: int | None = field(default=None, metadata=HELP)
    revision: str | None = field(default=None, metadata=HELP)
    layers: list[int] = field(default_factory=lambda: [0, 1], metadata=HELP)
    tags: list[str] | None = field(default=None, metadata=HELP)

    def __post_init__(self):
        if self.num_epochs < 0:
            raise ValueError(f"num_epochs is {self.num_epochs}, must be at least 0")
        if self.num_epochs == 99:
            raise SurgeryError("passes through")


@dataclass
class Switch:
    enabled: bool = field(metadata={"help": "no default"})


def parse(*argv, config_class=Config):
    return parse_config(config_class, argv, prog="lma-hf distill", description="Distil.")


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def complaint(*argv, config_class=Config) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, config_class=config_class)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_of_every_type():
    argv = "--task_name rte --learning-rate 3e-4 --fp16 --no_shuffle --activation gelu --layers 1 2 --tags a"
    expected = Config("rte", 3e-4, fp16=True, shuffle=False, activation="gelu", layers=[1, 2], tags=["a"])
    assert parse(*argv.split()) == expected


def test_flags_override_yaml_overrides_defaults(yaml_file):
    path = yaml_file("task_name: rte\nlearning_rate: 3e-4\nnum_epochs: 5\nfp16: yes\ntags: [a, b]\nmax_length: null\n")
    assert parse(path, "--num_epochs", "3") == Config("rte", 3e-4, 3, fp16=True, tags=["a", "b"])
    assert parse("--num_epochs=3", "--config", path, "--fp16", "no") == Config("rte", 3e-4, 3, tags=["a", "b"])


def test_file_of_comments_changes_nothing(yaml_file):
    assert parse(yaml_file("# nothing here\n"), "--task_name", "rte") == Config("rte")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'; the nearest known one is 'learning_rate'"),
        ("learning-rate: 1", "unknown key 'learning-rate'; the nearest known one is 'learning_rate'"),
        ("1: 1", "unknown key 1; the nearest"),
        ("learning_rate: fast", "learning_rate: got 'fast', expected float"),
        ("learning_rate: {a: 1}", "learning_rate: got {'a': 1}, expected float"),
        ("num_epochs: 2.5", "num_epochs: got '2.5', expected int"),
        ("num_epochs: true", "num_epochs: got 'True', expected int"),
        ("num_epochs: null", "num_epochs: got None, expected int"),
        ("max_length: long", "max_length: got 'long', expected int"),
        ("fp16: maybe", "fp16: got 'maybe', expected true or false"),
        ("task_name: no", "task_name: got False, expected str; put the value in quotes"),
        ("revision: 1.0e+5", "revision: got 100000.0, expected str; put the value in quotes"),
        ("layers: {a: 1}", "layers: got {'a': 1}, expected a list of int"),
        ("layers: [1, x]", "layers: got 'x', expected int"),
        ("activation: glu", "activation: got 'glu', expected one of lma, gelu; the nearest is gelu"),
        ("fp16: true\nfp16: false", "line 2: key 'fp16' stands twice"),
        ("fp16: true\n  num_epochs: 1", "line 2: mapping values are not allowed here"),
        ("- fp16", "holds a list, not `key: value` lines"),
        ("just words", "holds a str, not `key: value` lines"),
        ("revision: 2024-13-45", "is not YAML: month must be in 1..12"),
        (b"revision: \xff", "is not YAML"),
    ],
)
def test_unusable_yaml(yaml_file, line, message):
    path = yaml_file(line)
    found = complaint(path, "--task_name", "rte")
    assert path in found
    assert message in found


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--learning_rat 1", "unknown flag --learning_rat; the nearest known one is --learning_rate"),
        ("--max_len=1", "unknown flag --max_len; the nearest known one is --max_length"),
        ("--learning_rate fast", "got 'fast', expected float; see `lma-hf distill --help`"),
        ("--learning_rate", "expected one argument; see `lma-hf distill --help`"),
        ("--fp16 perhaps", "got 'perhaps', expected true or false"),
        ("--activation glu", "got 'glu', expected one of lma, gelu; the nearest is gelu"),
        ("--task_name rte late.yaml", "unexpected argument 'late.yaml'; only a YAML file may stand without a flag"),
        ("one.yaml --config two.yaml", "two configuration files, one.yaml and --config two.yaml; give one"),
        ("nowhere.yaml", "cannot read the configuration file nowhere.yaml: No such file or directory"),
        (".", "cannot read the configuration file .: Is a directory"),
        ("--num_epochs 1", "--task_name is missing and has no default"),
        ("--task_name rte --num_epochs -1", "num_epochs is -1, must be at least 0"),
    ],
)
def test_unusable_arguments(argv, message):
    assert message in complaint(*argv.split())


def test_required_switch_is_not_false_by_silence():
    assert "--enabled is missing" in complaint(config_class=Switch)
    assert parse("--enabled", config_class=Switch) == Switch(True)


def test_own_errors_pass_through():
    with pytest.raises(SurgeryError, match="passes through"):
        parse("--task_name", "rte", "--num_epochs", "99")


def test_help_shows_defaults_and_ends_well(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "usage: lma-hf distill [FILE.yaml] [--flag VALUE ...]" in printed
    assert "the task (required)" in printed
    assert "50 % of it (default: 0.0001)" in printed


# Without surrogates, which no UTF-8 file can hold.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
CONFIGS = st.builds(
    Config,
    task_name=TEXT,
    learning_rate=st.floats(allow_nan=False),
    num_epochs=st.integers(0, 98),
    fp16=st.booleans(),
    shuffle=st.booleans(),
    activation=st.sampled_from(["lma", "gelu"]),
    max_length=st.none() | st.integers(),
    revision=st.none() | TEXT | st.sampled_from(["3e-4", "no", "null", "~", "007", "2024-01-01", "- a", "# b"]),
    layers=st.lists(st.integers(), max_size=3),
    tags=st.none() | st.lists(TEXT, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(CONFIGS)
def test_written_configuration_reads_back(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    to_yaml(config, path, "lma-hf distill round_trip.yaml")
    assert parse(str(path)) == config


def test_written_configuration_opens_with_its_command(tmp_path):
    to_yaml(Config("rte"), tmp_path / "config.yaml", "lma-hf distill \\\n  config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert lines[:3] == ["# lma-hf distill \\   config.yaml", "task_name: rte", "learning_rate: 0.0001"]
