"""The run's folder: claimed once, written so that a file is there whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from lma_hf.errors import OutputDirError

RUN_CONFIG = "run_config.yaml"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
DELTA = "delta"


def check_output_dir(output_dir, overwrite, inputs=(), resumable=False, overwritable=True):
    """Raises: OutputDirError if the folder holds anything that may not be overwritten, or cannot be a folder.

    Even with `overwrite` only a folder with a run's records is given up, and none that holds an input of this run.

    Args: inputs: paths, or names that may be paths, that the run reads. resumable: --resume is a way out.
        overwritable: --overwrite_output_dir is one.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise OutputDirError(f"output_dir {path} is a file; name a folder")
    contents = [file for file in path.iterdir() if not _is_leftover(file)] if path.is_dir() else []
    if not contents:
        return
    if not overwrite:
        unfinished = resumable and (path / RUN_CONFIG).is_file() and not (path / RESULTS).is_file()
        ways = ["choose another folder"]
        ways += ["pass --resume true to go on with it"] if unfinished else []
        ways += ["pass --overwrite_output_dir true"] if overwritable else []
        advice = " or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))
        raise OutputDirError(f"output_dir {path} holds another run ({min(contents).name} ...); {advice}")
    if not any((path / name).is_file() for name in (RUN_CONFIG, RESULTS)):
        raise OutputDirError(f"output_dir {path} holds files but no run ({RUN_CONFIG}); choose another folder")
    for used in (Path.cwd(), *(Path(name).expanduser() for name in inputs)):
        if used.exists() and used.resolve().is_relative_to(path.resolve()):
            raise OutputDirError(f"output_dir {path} holds {used}, which this run needs; choose another folder")


def claim_output_dir(output_dir):
    """Create the folder, or empty it; call `check_output_dir` first. Raises: OutputDirError if that fails."""
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # what makes the folder a run goes last, so that it can be emptied again if this is interrupted
        for child in sorted(path.iterdir(), key=lambda child: (child.name == RUN_CONFIG, child.name != RESULTS)):
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    except OSError as error:
        raise OutputDirError(f"output_dir {path} cannot be used: {error}; choose another folder") from error


def remove_leftovers(output_dir):
    """Remove what a process that was killed while writing has left."""
    for path in filter(_is_leftover, Path(output_dir).iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_leftover(path):
    return path.name.startswith(".saving-") or (path.name.startswith(".") and path.name.endswith(".saving"))


def save_model(model, tokenizer, output_dir, state_dict=None):
    """Save model and tokenizer into the folder. The files are complete before the first old one is replaced.

    Args: state_dict: the model's weights, where processes hold only parts of them.
    Returns: the names of the files.
    """
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
        # a copy: save_pretrained takes out what it has written
        model.save_pretrained(folder, **({"state_dict": dict(state_dict)} if state_dict is not None else {}))
        save_tokenizer(tokenizer, folder)
        files = sorted(Path(folder).iterdir())
        for file in files:
            os.replace(file, Path(output_dir) / file.name)
    return [file.name for file in files]


def save_tokenizer(tokenizer, folder):
    """`save_pretrained`, without the line breaks that are a third of tokenizer.json (0.25 MB for BERT's tokens)."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def write_json(value, path):
    """Write JSON atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_whole(path, write):
    """Let `write` make a file, and put it in place at once, whoever else does so. Args: write: (path) -> None."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.saving")
    write(temporary)
    os.replace(temporary, path)


def append_json_line(value, path):
    """Append one JSON object as a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
