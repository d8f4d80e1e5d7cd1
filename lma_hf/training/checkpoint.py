"""The run's folder: claimed once, written so that a file is there whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from lma_hf.errors import OutputDirError

RUN_CONFIG = "run_config.yaml"
RESULTS = "results.json"
DELTA = "delta"


def check_output_dir(output_dir, overwrite, inputs=()):
    """Raises: OutputDirError if the folder holds anything that may not be overwritten, or cannot be a folder.

    Even with `overwrite` only a folder with a run's records is given up, and none that holds an input of this run.

    Args: inputs: paths, or names that may be paths, that the run reads.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise OutputDirError(f"output_dir {path} is a file; name a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputDirError(
            f"output_dir {path} holds another run ({min(path.iterdir()).name} ...); choose another folder or pass "
            "--overwrite_output_dir true"
        )
    if not any((path / name).is_file() for name in (RUN_CONFIG, RESULTS)):
        raise OutputDirError(f"output_dir {path} holds files but no run ({RUN_CONFIG}); choose another folder")
    for used in (Path.cwd(), *map(Path, inputs)):
        if used.exists() and used.resolve().is_relative_to(path.resolve()):
            raise OutputDirError(f"output_dir {path} holds {used}, which this run needs; choose another folder")


def claim_output_dir(output_dir):
    """Create the folder, or empty it; call `check_output_dir` first. Raises: OutputDirError if that fails."""
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    except OSError as error:
        raise OutputDirError(f"output_dir {path} cannot be used: {error}; choose another folder") from error


def save_model(model, tokenizer, output_dir, state_dict=None):
    """Save model and tokenizer into the folder. The files are complete before the first old one is replaced.

    Args: state_dict: the model's weights, where processes hold only parts of them.
    """
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
        # a copy: save_pretrained takes out what it has written
        model.save_pretrained(folder, **({"state_dict": dict(state_dict)} if state_dict is not None else {}))
        tokenizer.save_pretrained(folder)
        for file in Path(folder).iterdir():
            os.replace(file, Path(output_dir) / file.name)


def write_json(value, path):
    """Write JSON atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.saving")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def append_json_line(value, path):
    """Append one JSON object as a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
