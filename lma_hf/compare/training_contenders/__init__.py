"""Other ways to distil a student, timed beside ours: a module `<name>.py` with `train(job)` each."""

import importlib
from importlib import metadata

from lma_hf.errors import MissingDependencyError

# name -> what it needs besides lma_hf
CONTENDERS = {"plain": "", "grouped": "", "textbrewer": "textbrewer tensorboard", "torchdistill": "torchdistill"}


def load_contender(name):
    """The contender's function, which trains the student of a `TrainingJob` in place.

    Raises: MissingDependencyError if its package cannot be imported.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}").train
    # a torchvision (of torchdistill's) that was built for another torch is a RuntimeError
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(
            f"contender {name} cannot be imported: {reason}; run pip install {CONTENDERS[name]} (see "
            "docs/training_speed.md), or leave it out of --contenders"
        ) from error


def contender_versions(names):
    """Package -> version, of the contenders that are a package."""
    return {name: metadata.version(name) for name in names if CONTENDERS.get(name)}
