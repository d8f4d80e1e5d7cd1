"""How many hidden units an activation is worth: `lma-hf probe` as a script."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where evaluate.py would hide the package of that name
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    from lma_hf.cli.__main__ import main

    sys.exit(main(["probe", *sys.argv[1:]]))
