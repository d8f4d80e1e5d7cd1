"""Files for GLUE's test server: which splits it wants, under which names, in which format."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lma_hf.data.glue import GLUE_TASKS, Task
from lma_hf.errors import OutputDirError


@dataclasses.dataclass(frozen=True)
class ServerFile:
    """One file of a submission: its name, and the split (and configuration of nyu-mll/glue) it answers."""

    name: str
    dataset_config: str
    split: str = "test"


# As GLUE's authors write them: names by GLUE_NAME_MAP, jiant/evaluate.py (github.com/nyu-mll/jiant-v1-legacy); formats
# by src/main.py (github.com/nyu-mll/GLUE-baselines). AX holds the diagnostics, which an MNLI model answers.
SERVER_FILES: dict[str, tuple[ServerFile, ...]] = {
    "cola": (ServerFile("CoLA.tsv", "cola"),),
    "sst2": (ServerFile("SST-2.tsv", "sst2"),),
    "mrpc": (ServerFile("MRPC.tsv", "mrpc"),),
    "stsb": (ServerFile("STS-B.tsv", "stsb"),),
    "qqp": (ServerFile("QQP.tsv", "qqp"),),
    "mnli": (
        ServerFile("MNLI-m.tsv", "mnli", "test_matched"),
        ServerFile("MNLI-mm.tsv", "mnli", "test_mismatched"),
        ServerFile("AX.tsv", "ax"),
    ),
    "qnli": (ServerFile("QNLI.tsv", "qnli"),),
    "rte": (ServerFile("RTE.tsv", "rte"),),
    "wnli": (ServerFile("WNLI.tsv", "wnli"),),
}
# the server takes the name of the class from these tasks, and its id from all others
NAMED_CLASSES = ("mnli", "qnli", "rte")
MAX_SIMILARITY = 5.0  # of STS-B


def to_server_format(task: Task, predictions: np.ndarray) -> list[str]:
    """What the server wants to read for each prediction.

    Args:
        task: a GLUE task with its label names in the dataset's order, which need not be GLUE's.
        predictions: of shape (rows,); ids into `task.label_names`, or scores for STS-B.
    """
    if task.is_regression:
        # adding 0.0 turns -0.0 into 0.0
        return [f"{score + 0.0:.3f}" for score in np.clip(predictions, 0.0, MAX_SIMILARITY)]
    official = GLUE_TASKS[task.name].label_names
    words = [name if task.name in NAMED_CLASSES else str(official.index(name)) for name in task.label_names]
    return [words[prediction] for prediction in predictions]


def check_server_files(folder: Path, task_name: str) -> None:
    """Raises: OutputDirError if `folder` cannot be one, or holds a file that this task would write."""
    if folder.exists() and not folder.is_dir():
        raise OutputDirError(f"predict {folder} is a file; name a folder")
    for file in SERVER_FILES[task_name]:
        if (folder / file.name).exists():
            raise OutputDirError(f"predict {folder} holds {file.name} already; choose another folder or move the file")


def write_server_file(path: Path, predictions: Sequence[str]) -> None:
    """Write one file, whole or not at all, and its folder where that is missing. Raises: OutputDirError."""
    lines = ["index\tprediction", *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))]
    temporary = path.with_name(f".{path.name}.saving")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputDirError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
