"""How fast a student is distilled: ours against others, with the same student, teacher, rows, epochs and precision.

Every run is a process of its own; the contenders take turns, and the table holds medians. To add a contender write a
function (config, cache folder) -> {"train_seconds", "score"} and name it in CONTENDERS.
"""

import csv
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lma_hf.cli.distill as distill_command
from lma_hf.cli.accelerator import make_accelerator
from lma_hf.cli.evaluator import Evaluator
from lma_hf.cli.loading import labels_of_model, load_data, load_tokenizer_and_model
from lma_hf.cli.parser import parse_config
from lma_hf.compare.plain_trainer import train_plainly
from lma_hf.data.collate import tokenize_splits
from lma_hf.data.labels import align_labels
from lma_hf.student.build import build_student
from lma_hf.training.config import DistillConfig, option


@dataclass(kw_only=True)
class BenchConfig(DistillConfig):
    """Times distillation; what a run is told, and how often it is run."""

    activation: str = option("gelu", "FFN activation of the student; gelu and relu are what every contender can do")
    contenders: list[str] = option(["plain", "live", "first", "warm"], "in this order, in every round")
    rounds: int = option(3, "runs of every contender, taking turns")
    only: str | None = option(None, "for the benchmark itself: run this contender and print its figures")


def plain(config, cache):
    """transformers.Trainer with the teacher in compute_loss."""
    splits, task = load_data(config, with_train=True)
    tokenizer, teacher = load_tokenizer_and_model(config.teacher, "teacher")
    mapping = labels_of_model(teacher, task, config.dataset, config.teacher)
    student = build_student(teacher, config.num_layers, config.resolved_layer_map, config.activation)
    tokenized = tokenize_splits(splits, task, tokenizer, config.max_length)
    train = align_labels(splits[task.train_split].select_columns(["label"]), mapping)["label"][:]
    rows = tokenized[task.train_split].remove_columns("labels").add_column("labels", train)
    seconds = train_plainly(teacher, student, tokenizer, rows, config)
    evaluator = Evaluator(tokenized, task, tokenizer, mapping, config, make_accelerator(config))
    return {"train_seconds": seconds, "score": evaluator.score(evaluator(student))}


def ours(config, cache):
    """`lma-hf distill`; computing or reading the teacher's answers counts as training."""
    seconds, cached_answers = [0.0], distill_command.cached_answers

    def timed(*arguments):
        start = time.perf_counter()
        result = cached_answers(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    distill_command.cached_answers = timed
    with tempfile.TemporaryDirectory() as folder:
        results = distill_command.distill(dataclasses.replace(config, output_dir=folder, teacher_cache=cache))
    training = results["training"]
    return {"train_seconds": sum(seconds) + training["train_seconds"], "score": training["best_score"]}


# name -> (function, whether it has the cache folder; "first" finds it empty and "warm" finds it filled)
CONTENDERS = {"plain": (plain, False), "live": (ours, False), "first": (ours, True), "warm": (ours, True)}


def run_one(config):
    """Run the contender `config.only` and print its figures as one line of JSON."""
    start = time.perf_counter()
    contender, with_cache = CONTENDERS[config.only]
    figures = contender(config, config.teacher_cache if with_cache else None)
    figures["seconds"] = time.perf_counter() - start
    # of all threads; does not count what other processes on the machine took
    figures["cpu_seconds"] = time.process_time()
    # kilobytes on Linux
    figures["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


def run_rounds(config, argv):
    """One dict of figures a run."""
    rows = []
    for number in range(config.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in config.contenders:
                command = [sys.executable, "-m", __name__, *argv, "--only", name, "--teacher_cache", cache]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append({"round": number, "contender": name, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def summarize(rows):
    """Medians of every contender as a Markdown table."""
    lines = ["| contender | training s | whole job s | CPU s | peak memory MB | score |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["contender"] for row in rows):
        keys = ("train_seconds", "seconds", "cpu_seconds", "peak_memory_mb", "score")
        medians = [statistics.median(row[key] for row in rows if row["contender"] == name) for key in keys]
        times = " | ".join(f"{seconds:.1f}" for seconds in medians[:3])
        lines.append(f"| {name} | {times} | {medians[3]:.0f} | {medians[4]:.4f} |")
    return "\n".join(lines)


def main(argv):
    """Run the benchmark; output_dir gets runs.csv."""
    config = parse_config(BenchConfig, argv, prog="bench_training.py", description=__doc__)
    if config.only:
        run_one(config)
        return
    rows = run_rounds(config, argv)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "runs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(summarize(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
