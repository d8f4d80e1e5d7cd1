"""The whole benchmark of LMA: `lma-hf profile` on every shape, with one thread and all, in FFNs and in a model."""

import sys
from pathlib import Path

SHAPES = ["32x128", "256x512", "1024x1536", "4096x1536", "4096x3072", "16384x3072"]

if __name__ == "__main__":
    # Python puts this folder first on the path, where evaluate.py would hide the package of that name
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    import torch

    from lma_hf.cli.__main__ import main

    threads = sorted({1, torch.get_num_threads()})
    grid = ["--shapes", *SHAPES, "--threads", *map(str, threads), "--parts", "activation", "ffn", "model"]
    sys.exit(main(["profile", *grid, *sys.argv[1:]]))
