"""Time distillation against other ways to do it: `python scripts/bench_training.py --task_name sst2 ...`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where evaluate.py would hide the package of that name
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    from lma_hf.cli.bench_training import main

    main(sys.argv[1:])
