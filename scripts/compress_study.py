"""Compress the students of a study in several ways, and score what lies in the folders, each in a fresh process.

python scripts/compress_study.py --study_dir results/three_layers --dataset ../shared/glue --output_dir runs/compressed

A row of compressed.csv in output_dir for each student and way: the folder's size by `du`, and the score on validation
rows by `lma-hf evaluate`. compressed.md has their means over seeds, and the share of the tasks' average that is left,
with its 95 % t interval over seeds, of the tasks and seeds that are there for every way; for each student and
activation, where there are several. What is there already is not done again, so the same command goes on after an
interruption, and several may run side by side on different --cells.
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
RECORD = "compression.json"
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
    cells = [cell for cell in read_results(args.study_dir) if fnmatchcase(cell.name, args.cells)]
    # in this order, since some start from what others leave
    ways = [way for way in WAYS if way in args.ways]
    check_sources(cells, ways, args.output_dir)
    for cell in cells:
        for way in ways:
            measure(cell, way, args)
    write_table(args.output_dir)


def check_sources(cells, ways, output_dir):
    """End with one line if a way starts from what `trimmed` leaves, and that is not there."""
    if "trimmed" in ways:
        return
    for way in (way for way in ways if way.startswith("trimmed-")):
        for folder in (output_dir / cell.name for cell in cells):
            if not (folder / "trimmed" / RECORD).is_file() and not (folder / f"{way}.json").is_file():
                sys.exit(f"--ways names {way}, which starts from {folder / 'trimmed'}; add trimmed to --ways")


def measure(cell, way, args):
    """Compress the student of a cell in one way, score it, and leave a row beside it."""
    data = ["--task_name", cell.task, "--dataset", args.dataset]
    folder = args.output_dir / cell.name / way
    row_file = folder.with_suffix(".json")
    if row_file.is_file():
        return
    if way == "float32":
        folder = cell.folder
    elif not (folder / RECORD).is_file():
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
    key = (cell.task, *student_and_activation(cell), cell.seed, way)
    row = dict(zip(COLUMNS, (*key, int(size.split()[0]), cell.metric, score), strict=True))
    row_file.write_text(json.dumps(row), encoding="utf-8")
    print(row, flush=True)


def student_and_activation(cell):
    """The two that rows are grouped by; the study's further axes are told after the activation."""
    return cell.model_name.split("/", 1)


def run(*command):
    subprocess.run([*LMA_HF, *map(str, command)], check=True)


def write_table(output_dir):
    """All rows that are there, by task, student, seed and way."""
    files = [file for way in WAYS for file in output_dir.rglob(f"seed-*/{way}.json")]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not rows:
        sys.exit(f"{output_dir} has no rows, and no finished cell of --study_dir is named as --cells says; correct it")
    order = list(WAYS)
    rows.sort(key=lambda row: (row["task"], row["student"], row["activation"], row["seed"], order.index(row["way"])))
    with open(output_dir / "compressed.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (output_dir / "compressed.md").write_text(summary(pd.DataFrame(rows)), encoding="utf-8")


def summary(rows):
    """A line of Markdown for each way; for each student and activation, where there are several."""
    groups = dict(list(rows.groupby(["student", "activation"])))
    scores = {key: scores_by_way(group, key) for key, group in groups.items()}
    tasks = sorted({task for each in scores.values() for task in each.index.unique("task")})
    names = ["student", "activation"] if len(groups) > 1 else []
    head = [*names, "way", "folder MB", *tasks, "share %"]
    lines, seeds = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], []
    for key, group in groups.items():
        named = key if names else ()
        entries, number = entries_of(group, scores[key], tasks)
        lines += [f"| {' | '.join((*named, *entry))} |" for entry in entries]
        seeds.append(": ".join(filter(None, [" ".join(named), number])))
    return "\n".join([*lines, "", *seeds, ""])


def scores_by_way(rows, key):
    """Scores x 100 of one student and activation, by way, of the tasks and seeds that are there for every way."""
    if "float32" not in set(rows["way"]):
        sys.exit(f"{' '.join(key)} has no row of float32, of which the others are a share; add float32 to --ways")
    return rows.pivot_table(index=["task", "seed"], columns="way", values="score").dropna() * 100


def entries_of(rows, scores, tasks):
    """(cells of a line for each way, how many seeds are in the shares) of one student and activation."""
    sizes = rows.groupby("way")["folder_kb"].mean() * 1024 / 1e6
    own_tasks = scores.index.unique("task")
    averages = scores.groupby("seed").filter(lambda of_seed: len(of_seed) == len(own_tasks)).groupby("seed").mean()
    entries = []
    for way in (way for way in WAYS if way in scores):
        means = scores[way].groupby("task").mean()
        of_tasks = [f"{means[task]:.2f}" if task in means else "-" for task in tasks]
        left = share(averages[way] / averages["float32"]) if len(averages) else "-"
        entries.append((way, f"{sizes[way]:.1f}", *of_tasks, left))
    if averages.empty:
        return entries, "no seed is there for every task and way, so there is no share"
    return entries, f"{len(averages)} seeds"


def share(of_seeds):
    mean, interval = 100 * of_seeds.mean(), t_interval(100 * np.asarray(of_seeds)) if len(of_seeds) > 1 else None
    return f"{mean:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


if __name__ == "__main__":
    main()
