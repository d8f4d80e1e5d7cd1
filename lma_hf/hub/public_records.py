"""A run's records without what belongs to this machine alone: local paths become their last component."""

import json
import os
import re
from pathlib import Path, PureWindowsPath

import yaml

RESULTS = "results.json"
RUN_CONFIG = "run_config.yaml"
ENVIRONMENT = "environment.json"
RECORDS = (RESULTS, RUN_CONFIG, ENVIRONMENT, "metrics.jsonl")

# an absolute path amid other text, which ends at a space or a quote; a URL has no such beginning
_EMBEDDED_PATH = re.compile(r"""(?<![\w:/.~])~?/(?:[^\s'"/]+/)*([^\s'"/]+)/?""")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def without_paths(value):
    """The value, or dict or list of values, with every local path in it shortened to its last component."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    return _shorten(value) if isinstance(value, str) else value


def _shorten(text):
    if _WINDOWS_PATH.match(text):
        return PureWindowsPath(text).name
    if _is_local_path(text):
        return Path(text).name or "."
    return _EMBEDDED_PATH.sub(r"\1", text)


def _is_local_path(text):
    # a hub id has at most one slash, and a folder may have the same name
    relative = " " not in text and text.count("/") > 1 and "://" not in text
    return text.startswith(("/", "~", "./", "../", "file:")) or relative or ("/" in text and os.path.exists(text))


def write_public_records(model_dir, folder):
    """Copy those of RECORDS that model_dir holds into `folder`, without local paths.

    Raises: ValueError if one of them cannot be read as what its name says.
    """
    for name in RECORDS:
        source = Path(model_dir) / name
        if source.is_file():
            (Path(folder) / name).write_text(_public_text(source), encoding="utf-8")


def _public_text(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return "".join(json.dumps(without_paths(json.loads(line))) + "\n" for line in text.splitlines() if line)
    if path.suffix == ".json":
        return json.dumps(without_paths(json.loads(text)), indent=2) + "\n"
    try:
        values = without_paths(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML") from error
    verb = re.match(r"# lma-hf (\w+) ", text)
    header = f"# lma-hf {verb[1]} {path.name} --output_dir ANOTHER_FOLDER\n" if verb else ""
    return header + yaml.safe_dump(values, sort_keys=False)
