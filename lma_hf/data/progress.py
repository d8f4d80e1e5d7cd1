"""Quiet `datasets` calls without changing the process-wide setting for anyone else."""

import contextlib
from collections.abc import Iterator

import datasets
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` inside the block; the setting before it returns afterwards."""
    # With the environment variable set, datasets refuses (and warns about) any change: the user has decided.
    if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
