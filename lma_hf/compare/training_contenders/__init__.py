"""Other ways to distil a student, timed beside ours: a module `<name>.py` with `train(job)` each."""

import importlib
from importlib import metadata

from lma_hf.errors import MissingDependencyError

CONTENDERS = ("plain", "grouped", "textbrewer", "torchdistill")
PACKAGES = ("textbrewer", "torchdistill")  # contenders that are a package of that name


def load_contender(name):
    """The contender's function, which trains the student of a `TrainingJob` in place.

    Raises: MissingDependencyError if its package cannot be imported.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}").train
    # torchdistill's torchvision raises a RuntimeError if it was built for another torch
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(
            f"contender {name} cannot be imported: {reason}; run pip install {name} (see docs/training_speed.md), or "
            "leave it out of --contenders"
        ) from error


def contender_versions(names):
    """Package -> version, of the contenders that are a package."""
    return {name: metadata.version(name) for name in names if name in PACKAGES}
