"""A study whose runs take moments: the driver, to be killed, and what stands in for `distill`.

`study_worker.py drive STUDY_DIR JOBS` runs the study. `study_worker.py distill SETTINGS --output_dir DIR` is one run:
it notes its start in the study's starts.txt (cell, its process, who started it), and leaves records like a real one,
run_config.yaml first and results.json last. With `--resume true` it goes on in DIR.
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

SECONDS = 0.3


def distill(settings, output_dir, *flags):
    options = yaml.safe_load(settings.read_text())
    with open(settings.parents[2] / "starts.txt", "a") as file:
        file.write(f"{settings.parent.name} {os.getpid()} {os.getppid()} {' '.join(flags)}\n")
    output_dir.mkdir(parents=True, exist_ok=flags == ("--resume", "true"))
    (output_dir / "run_config.yaml").write_text(yaml.safe_dump({**options, "output_dir": str(output_dir)}))
    (output_dir / "checkpoints").mkdir(exist_ok=True)
    if (settings.parents[2] / "checkpoint").is_file():
        (output_dir / "checkpoints" / "step-00000004").mkdir(exist_ok=True)
    print("\rtraining: 50%\rtraining: 100%", flush=True)
    time.sleep(SECONDS)
    if (settings.parents[2] / "fail").is_file() and options["activation"] == "relu":
        sys.exit("lma-hf: error: the disk is full")
    write_records(output_dir, options)
    results = output_dir / ".results"
    results.write_text(json.dumps(results_of(options)))
    os.replace(results, output_dir / "results.json")
    time.sleep(SECONDS / 4)


def write_records(folder, options):
    (folder / "model.safetensors").write_bytes(repr(sorted(options.items())).encode())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "environment.json").write_text(json.dumps({"date": time.time(), "versions": {"torch": "2"}}))
    line = {"step": 4, "epoch": 1.0, "loss": 0.5, "task_loss": 0.25, "learning_rate": 0.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def results_of(options):
    score = options["seed"] / 8
    return {
        "best_metric": "accuracy",
        "metrics": {"validation": {"accuracy": score}, "other": {"accuracy": 0.5}},
        "training": {"best_score": score, "train_seconds": 1.0},
        "num_parameters": 10,
        "size_mb": 1.5,
    }


def make_study(folder, **changes):
    """(config, cells) of a study of eight cells, run by the stand-in."""
    from lma_hf.compare import cell_run
    from lma_hf.compare.study import CompareConfig, expand

    cell_run.DISTILL = [sys.executable, __file__, "distill"]
    activations = {name: {"activation": name} for name in ("gelu", "relu")}
    values = {"tasks": {"rte": None, "sst2": None}, "students": {"small": None}, "activations": activations}
    config = CompareConfig(**{"output_dir": str(folder), "seeds": [1, 2], **values, **changes})
    return config, expand(config)


if __name__ == "__main__":
    if sys.argv[1] == "distill":
        distill(Path(sys.argv[2]), Path(sys.argv[4]), *sys.argv[5:])
    else:
        from lma_hf.compare.study_run import run_cells

        run_cells(*make_study(sys.argv[2], jobs=int(sys.argv[3])))
