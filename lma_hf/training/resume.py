"""Is this the run that was interrupted? The configuration, the data, the models and the number of processes."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import accelerate
import pyarrow.compute as pc
import torch
import transformers
import yaml

from lma_hf.errors import ConfigError, OutputDirError
from lma_hf.training.checkpoint import RESULTS

logger = logging.getLogger(__name__)

# Options that may differ: where things are (their contents are compared), what is recorded, and what is done if
# something goes wrong
PLACES = {"dataset", "teacher", "model_name_or_path"}
MAY_DIFFER = PLACES | {
    *("output_dir", "overwrite_output_dir", "resume", "save_steps", "save_minutes", "save_total_limit"),
    *("logging_steps", "report_to", "ddp_timeout", "on_nan", "allow_weak_teacher", "per_device_eval_batch_size"),
}


def read_results(output_dir):
    """What results.json holds if the run is finished, else None."""
    file = Path(output_dir) / RESULTS
    if not file.is_file():
        return None
    results = json.loads(file.read_text(encoding="utf-8"))
    steps = results["training"]["num_steps"]
    logger.info("the run in %s is finished (%s steps), so there is nothing to resume", output_dir, steps)
    return results


def check_same_config(config, file):
    """Raises: ConfigError naming what differs between a config and the run_config.yaml of the interrupted run."""
    try:
        before = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OutputDirError(f"{file} cannot be read: {' '.join(str(error).split())}; use another folder") from error
    check_same_settings(config, before or {}, Path(file).parent)


def check_same_settings(config, before, output_dir):
    """Raises: ConfigError naming what differs between a config and the options of the run in a folder, as a dict.

    An option that `before` lacks had its default, for example because it is newer than the run.
    """
    now = dataclasses.asdict(config)
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    before = {**defaults, **before}
    differing = [
        f"{name} is {now.get(name)!r}, was {before.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in MAY_DIFFER and before.get(name) != now.get(name)
    ]
    _refuse(differing, output_dir)


def check_same_run(now, before, output_dir):
    """Raises: ConfigError naming what differs between the `run_identity` of this run and of the interrupted one."""
    names = [name for name in sorted(before.keys() | now.keys()) if name != "versions"]
    differing = [
        f"{name}: {now.get(name)}, was {before.get(name)}" if name == "num_processes" else f"other {name}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    _refuse(differing, output_dir)
    changed = [f"{k} {v} (was {before['versions'].get(k)})" for k, v in now["versions"].items()]
    if now["versions"] != before["versions"]:
        logger.warning("other versions than before, so the result may differ in rounding: %s", ", ".join(changed))


def run_identity(num_processes, contents):
    """What must be the same to go on with a run, besides its configuration.

    Args: contents: {name: digest} of what the run reads.
    """
    versions = {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}
    return {"num_processes": num_processes, "versions": versions, **contents}


def rows_digest(dataset):
    """SHA-256 of a tokenized split's token ids and labels."""
    table = dataset.with_format("arrow")[:]
    digest = hashlib.sha256()
    for column in (pc.list_value_length(table["input_ids"]), pc.list_flatten(table["input_ids"]), table["labels"]):
        digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _refuse(differing, output_dir):
    if differing:
        raise ConfigError(
            f"the run in {output_dir} cannot be resumed with other settings ({'; '.join(differing)}); give the same "
            "ones, or another --output_dir without --resume"
        )
