"""A finished run's records for its compressed model, with the scores that this one has."""

import json
import shutil
from pathlib import Path

import yaml

from lma_hf.cli.evaluate import score_saved_model
from lma_hf.compare.profiling import folder_size_mb
from lma_hf.errors import ConfigError
from lma_hf.training.checkpoint import METRICS, RESULTS, RUN_CONFIG, write_json
from lma_hf.training.compress_config import DATA, READING
from lma_hf.training.config import EvaluateConfig

RECORD = "compression.json"
COPIED = (METRICS, RUN_CONFIG, "environment.json")


def check_finished_run(model_dir):
    """Raises: ConfigError if a folder is not the output_dir of a finished run."""
    for name in (*COPIED, RESULTS):
        if not (model_dir / name).is_file():
            raise ConfigError(f"score is true, but {model_dir} holds no {name} of a finished run; drop score")


def write_records(config, folder, record, num_parameters):
    """Score the compressed model in `folder` on the run's validation data, and write the run's records beside it.

    Args: config: the `CompressConfig`. record: what compression.json is to hold. num_parameters: of the compressed
        model.
    Returns: split -> metric -> value in [-1, 1].
    """
    model_dir = Path(config.model_dir).expanduser()
    run_config = yaml.safe_load((model_dir / RUN_CONFIG).read_text(encoding="utf-8"))
    data = {name: run_config[name] for name in (*DATA, "mixed_precision") if name in run_config}
    data |= reading_now(config, run_config)
    results = json.loads((model_dir / RESULTS).read_text(encoding="utf-8"))
    results["metrics"] = score_saved_model(EvaluateConfig(model_dir=str(folder), **data))
    results |= {"num_parameters": num_parameters, "size_mb": folder_size_mb(folder), "compression": record}
    write_json(results, folder / RESULTS)
    for name in COPIED:
        shutil.copyfile(model_dir / name, folder / name)
    return results["metrics"]


def earlier_steps(model_dir):
    """What `compress` has done to a model before, of what compression.json is to hold."""
    folder = Path(model_dir).expanduser()
    files = [folder / RESULTS, folder / RECORD]
    results, record = (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {} for file in files)
    # one that was fetched from the hub has no compression.json
    record = record or results.get("compression", {})
    return {name: record[name] for name in ("vocabulary", "weights") if name in record}


def reading_now(config, run_config):
    """What a `CompressConfig` says of where the run's data is now and how it is read, if it says so."""
    given = {name: value for name, value in config.set_options.items() if name in READING}
    same_task = all(getattr(config, name) == run_config.get(name) for name in ("task_name", "text_columns"))
    if config.needs_texts and not same_task:
        # the vocabulary is cut to other texts than the run's
        given.pop("dataset", None)
    return given


def write_compression(record, folder):
    """Write compression.json, with the folder's size in it. Returns: what it holds."""
    record = {**record, "folder_mb": sum(file.stat().st_size for file in folder.iterdir()) / 1e6}
    write_json(record, folder / RECORD)
    return record
