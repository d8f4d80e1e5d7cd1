"""python -m lma_hf.compare.peak_memory MODEL THREADS LENGTH INPUT...: print the most memory that it takes, in MB.

A process of its own loads MODEL, a saved model's folder or an ONNX file, and runs 32 texts of LENGTH tokens.
INPUT: the names of the model's inputs.
"""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForSequenceClassification

import lma_hf  # noqa: F401 (models with its activations and packed weights)
from lma_hf.export.verify import onnx_runner

ROWS = 32
KILOBYTE = 1024


def peak_memory_mb(source: Path, threads: int, length: int, inputs: Sequence[str]) -> float:
    """Peak of this process from here on, less what it took for Python and its packages, in 1e6 bytes."""
    torch.set_num_threads(threads)
    before = psutil.Process().memory_info().rss
    ids = torch.ones(ROWS, length, dtype=torch.long)
    batch = {name: torch.zeros_like(ids) if name == "token_type_ids" else ids for name in inputs}
    if source.is_dir():
        model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
        with torch.inference_mode():
            model(**batch)
    else:
        onnx_runner(source, threads)(batch)
    return (_peak() - before) / 1e6


def _peak():
    """Most memory that this process has held, in bytes."""
    # on Linux ru_maxrss starts with what the parent process held
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return KILOBYTE * (kilobytes[0] if kilobytes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    path, num_threads, num_tokens, *names = sys.argv[1:]
    print(peak_memory_mb(Path(path), int(num_threads), int(num_tokens), names))
