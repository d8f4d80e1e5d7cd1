"""The run's folder: claimed once, written so that a file is there whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from lma_hf.errors import OutputDirError


def check_output_dir(output_dir, overwrite):
    """Raises: OutputDirError if the folder holds anything and may not be overwritten, or is a file."""
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise OutputDirError(f"output_dir {path} is a file; name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputDirError(
            f"output_dir {path} holds another run ({next(iter(sorted(path.iterdir()))).name} ...); "
            "choose another folder or pass --overwrite_output_dir"
        )


def claim_output_dir(output_dir):
    """Create the folder, empty; call `check_output_dir` first."""
    path = Path(output_dir)
    if path.is_dir():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def save_model(model, tokenizer, output_dir):
    """Save model and tokenizer into the folder. The files are complete before the first old one is replaced."""
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
        model.save_pretrained(folder)
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
