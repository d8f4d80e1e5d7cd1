"""Were the finished cells of a study run with the options that it has now?"""

import dataclasses
import logging
from collections import Counter

import yaml

from lma_hf.compare.cells import CELLS, read_result
from lma_hf.errors import ConfigError
from lma_hf.training.checkpoint import RUN_CONFIG
from lma_hf.training.config import DistillConfig
from lma_hf.training.resume import MAY_DIFFER, PLACES

logger = logging.getLogger(__name__)


def check_same_options(study_dir, cells, *, moved=False):
    """Refuse a study that says something else about its finished cells; warn where only a default has changed.

    Args: cells: list of `Cell`. moved: whether data, teachers and their cache may lie elsewhere than then.
    Raises: ConfigError naming the first option that differs.
    """
    allowed = MAY_DIFFER | {"teacher_cache"} if moved else MAY_DIFFER - PLACES
    finished = [(study_dir / CELLS / cell.name, cell) for cell in cells if (study_dir / CELLS / cell.name).is_dir()]
    for folder, cell in finished:
        then = read_result(folder).options
        for key in sorted({*then, *cell.options} - allowed):
            if then.get(key) != cell.options.get(key):
                raise ConfigError(
                    f"{folder} was run with {key} {then.get(key)!r}, and the study says {cell.options.get(key)!r}; "
                    "choose another output_dir, or delete that folder to run the cell again"
                )
    changed = Counter(change for folder, cell in finished for change in _changed_defaults(folder, cell.options))
    for (name, then, now), number in changed.items():
        logger.warning("%d finished cells have %s %s, which is now %s by default", number, name, then, now)


def _changed_defaults(folder, options):
    """(option, as it was, its default now), as text, of what the study does not name."""
    recorded = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    defaults = {field.name: field.default for field in dataclasses.fields(DistillConfig)}
    unnamed = recorded.keys() - options.keys() - MAY_DIFFER - {"seed", "teacher_cache"}
    changed = [name for name, now in defaults.items() if name in unnamed and recorded[name] != now]
    # options without a default, and lists, have none to compare with
    return [
        (name, repr(recorded[name]), repr(defaults[name]))
        for name in changed
        if defaults[name] is not dataclasses.MISSING
    ]
