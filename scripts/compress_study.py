"""Compress the students of a study in several ways, and score what lies in the folders, each in a fresh process.

python scripts/compress_study.py --study_dir results/three_layers --dataset ../shared/glue --output_dir runs/compressed

A row of compressed.csv in output_dir for each student and way: the folder's size by `du`, and the score on validation
rows by `lma-hf evaluate`. compressed.md has their means over seeds, and the share of the tasks' average that is left,
with its 95 % t interval over seeds, of the tasks and seeds that are there for every way. What is there already is not
done again, so the same command goes on after an interruption, and several may run side by side on different --cells.
"""

import argparse
import csv
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from lma_hf.compare.cells import read_results
from lma_hf.compare.paired import t_interval

LMA_HF = [sys.executable, "-m", "lma_hf.cli"]
CALIBRATED = ["--calibration_samples", "256"]
CODEBOOKS = ["--learning_rate", "1e-3", "--resume", "true"]
# the student itself; rounded without training; trained on with the rounding; cut to the tokens of the task's training
# texts, and that one with codebooks: without training, trained on layer by layer, and all at once after Quant-Noise
WAYS = {
    "float32": None,
    "int8": ["--recipe", "int8"],
    "int8-calibrated": ["--recipe", "int8", *CALIBRATED],
    "int4": ["--recipe", "int4"],
    "int4-calibrated": ["--recipe", "int4", *CALIBRATED],
    "qat4": ["--recipe", "qat4", "--num_train_epochs", "2", "--resume", "true"],
    "trimmed": ["--recipe", "float32", "--trim_vocabulary", "true", "--score", "true"],
    "trimmed-pq": ["--recipe", "pq"],
    "trimmed-ipq": ["--recipe", "ipq", "--resume", "true"],
    "trimmed-noise-pq": [*["--recipe", "pq", "--noise_rate", "0.1", "--num_train_epochs", "2"], *CODEBOOKS],
}
READ_TEXTS = ("int8-calibrated", "int4-calibrated", "trimmed")
COLUMNS = ("task", "student", "activation", "seed", "way", "folder_kb", "metric", "score")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--cells", default="*", help="pattern of cell names")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--vocabulary_min_count", default="1", help="how often a token occurs that `trimmed` keeps")
    args = parser.parse_args()
    for cell in read_results(args.study_dir):
        if fnmatchcase(cell.name, args.cells):
            for way in args.ways:
                measure(cell, way, args)
    write_table(args.output_dir)


def measure(cell, way, args):
    """Compress the student of a cell in one way, score it, and leave a row beside it."""
    data = ["--task_name", cell.task, "--dataset", args.dataset]
    folder = args.output_dir / cell.name / way
    row_file = folder.with_suffix(".json")
    if row_file.is_file():
        return
    if way == "float32":
        folder = cell.folder
    elif not (folder / "compression.json").is_file():
        source = cell.folder if not way.startswith("trimmed-") else folder.with_name("trimmed")
        texts = data if way in READ_TEXTS else []
        if way == "trimmed":
            texts = [*texts, "--vocabulary_min_count", args.vocabulary_min_count]
        run("compress", "--model_dir", source, "--output_dir", folder, *WAYS[way], *texts)
    size = subprocess.run(["du", "-sk", folder], check=True, capture_output=True, text=True).stdout
    row_file.parent.mkdir(parents=True, exist_ok=True)
    scores_file = row_file.with_suffix(".scores")
    scores_file.unlink(missing_ok=True)
    run("evaluate", "--model_dir", folder, *data, "--output_file", scores_file)
    score = next(iter(json.loads(scores_file.read_text()).values()))[cell.metric]
    scores_file.unlink()
    key = (cell.task, cell.student, cell.activation, cell.seed, way)
    row = dict(zip(COLUMNS, (*key, int(size.split()[0]), cell.metric, score), strict=True))
    row_file.write_text(json.dumps(row), encoding="utf-8")
    print(row, flush=True)


def run(*command):
    subprocess.run([*LMA_HF, *map(str, command)], check=True)


def write_table(output_dir):
    """All rows that are there, by task, student, seed and way."""
    files = [file for way in WAYS for file in output_dir.rglob(f"seed-*/{way}.json")]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    order = list(WAYS)
    rows.sort(key=lambda row: (row["task"], row["student"], row["activation"], row["seed"], order.index(row["way"])))
    with open(output_dir / "compressed.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (output_dir / "compressed.md").write_text(summary(pd.DataFrame(rows)), encoding="utf-8")


def summary(rows):
    """A line of Markdown for each way."""
    scores = rows.pivot_table(index=["task", "seed"], columns="way", values="score").dropna() * 100
    sizes = rows.groupby("way")["folder_kb"].mean() * 1024 / 1e6
    tasks = scores.index.unique("task")
    averages = scores.groupby("seed").filter(lambda of_seed: len(of_seed) == len(tasks)).groupby("seed").mean()
    lines = [f"| way | folder MB | {' | '.join(tasks)} | share % |", "|---" * (len(tasks) + 3) + "|"]
    for way in (way for way in WAYS if way in scores):
        means = " | ".join(f"{mean:.2f}" for mean in scores[way].groupby("task").mean())
        lines.append(f"| {way} | {sizes[way]:.1f} | {means} | {share(averages[way] / averages['float32'])} |")
    return "\n".join([*lines, "", f"{len(averages)} seeds", ""])


def share(of_seeds):
    mean, interval = 100 * of_seeds.mean(), t_interval(100 * np.asarray(of_seeds)) if len(of_seeds) > 1 else None
    return f"{mean:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


if __name__ == "__main__":
    main()
