"""How fast a student is distilled: ours against others, with the same student, teacher, rows, epochs and precision.

Every run is a process of its own; the contenders take turns, and the table holds medians. docs/training_speed.md says
what is compared. To add a contender write `lma_hf/compare/training_contenders/<name>.py` and name it in the
`__init__.py` there.
"""

import csv
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

from lma_hf.cli.__main__ import quiet_down
from lma_hf.cli.bench_contenders import run_other, run_ours
from lma_hf.cli.loading import resolve_task
from lma_hf.cli.parser import parse_config, to_yaml
from lma_hf.compare.profiling import environment
from lma_hf.compare.training_contenders import CONTENDERS, contender_versions, load_contender
from lma_hf.compare.training_table import training_table
from lma_hf.errors import ConfigError, LmaHfError, TrainingError
from lma_hf.training.checkpoint import RUN_CONFIG, check_output_dir, claim_output_dir, write_json
from lma_hf.training.config import DataConfig, DistillConfig, check_names, check_positive, option

# name -> the options that it has beside those of all; "first" finds the cache empty and "warm" finds it filled
OURS = {
    "live": (),
    "first": ("teacher_cache",),
    "warm": ("teacher_cache",),
    "warm-tokens": ("teacher_cache", "tokens_per_batch"),
    "warm-frozen": ("teacher_cache", "tokens_per_batch", "freeze_embeddings"),
}
# what every contender can be told; the rest of `DistillConfig` stays at its default
COMMON = {field.name for field in fields(DataConfig)} - {"is_regression"}
COMMON |= {"output_dir", "overwrite_output_dir", "teacher", "num_layers", "layer_map", "activation", "mixed_precision"}
COMMON |= {"num_train_epochs", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "warmup_ratio"}
COMMON |= {"weight_decay", "max_grad_norm", "temperature", "task_loss_weight", "distill_loss_weight"}
COMMON |= {"logging_steps", "allow_weak_teacher", "teacher_cache", "tokens_per_batch"}


@dataclass(kw_only=True)
class BenchConfig(DistillConfig):
    """Times distillation; what a run is told, and how often it is run."""

    activation: str = option("gelu", "FFN activation of the student: gelu or relu, which every contender can do")
    contenders: list[str] = option(
        ["plain", "live", "first", "warm"],
        f"in this order, in every round: {' '.join([*CONTENDERS, *OURS])}; the first sets the score to reach",
    )
    tokens_per_batch: int | None = option(576, "padded tokens of a batch, for warm-tokens and warm-frozen")
    rounds: int = option(3, "runs of every contender, taking turns; each round has the next seed")
    only: str | None = option(None, "for the benchmark itself: run this contender and print its figures")

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "rounds")
        check_names("contenders", self.contenders, (*CONTENDERS, *OURS))
        check_names("activation", [self.activation], ("gelu", "relu"))
        defaults = DistillConfig(task_name="sst2", output_dir="", teacher="")
        uncommon = [field.name for field in fields(DistillConfig) if field.name not in COMMON]
        changed = [name for name in uncommon if getattr(self, name) != getattr(defaults, name)]
        if self.mixed_precision == "fp16":
            changed.append("mixed_precision")
        if changed:
            value = getattr(self, changed[0])
            raise ConfigError(f"{changed[0]} is {value!r}, but not every contender can do that; leave it out")
        if resolve_task(self).is_regression:
            raise ConfigError(f"task_name is {self.task_name!r}, a regression; name a task with classes")


def run_one(config):
    """Run the contender `config.only` and print its figures as one line of JSON."""
    start, name = time.perf_counter(), config.only
    figures = run_ours(config, OURS[name]) if name in OURS else run_other(name, config)
    figures["seconds"] = time.perf_counter() - start
    # of all threads; does not count what other processes on the machine took
    figures["cpu_seconds"] = time.process_time()
    # kilobytes on Linux
    figures["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


def run_rounds(config, argv):
    """Yields all dicts of figures so far after every run. Raises: TrainingError if a run fails."""
    rows = []
    for number in range(config.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in config.contenders:
                command = [sys.executable, "-m", __spec__.name, *argv, "--only", name, "--teacher_cache", cache]
                command += ["--seed", str(config.seed + number)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    raise TrainingError(f"contender {name} failed in round {number}; what it said stands above")
                rows.append({"round": number, "contender": name, **json.loads(done.stdout.splitlines()[-1])})
                yield rows


def bench_training(config, argv):
    """Run the benchmark; output_dir gets runs.csv, table.md, environment.json and run_config.yaml."""
    if config.teacher_cache:
        raise ConfigError(
            f"teacher_cache is {config.teacher_cache!r}, but every round has its own folder; leave it out"
        )
    for name in config.contenders:
        if name in CONTENDERS:  # what is missing shows before hours of the others
            load_contender(name)
    folder = Path(config.output_dir).expanduser()
    check_output_dir(folder, config.overwrite_output_dir, [config.dataset, config.teacher])
    claim_output_dir(folder)
    for rows in run_rounds(config, argv):
        write_records(rows, config, folder)
    print((folder / "table.md").read_text(encoding="utf-8"), end="")


def write_records(rows, config, folder):
    """What the benchmark leaves behind. Args: rows: figures of every run."""
    with open(folder / "runs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.md").write_text(training_table(rows) + "\n", encoding="utf-8")
    versions = contender_versions(config.contenders)
    write_json({**environment(), "contenders": versions}, folder / "environment.json")
    path = folder / RUN_CONFIG
    command = f"python scripts/bench_training.py {path} --output_dir ANOTHER_FOLDER"
    to_yaml(dataclasses.replace(config, overwrite_output_dir=False), path, command)


def main(argv):
    """Run the benchmark, or one contender. Returns: exit code; 2 on misuse, 1 when a run failed."""
    quiet_down()
    try:
        config = parse_config(BenchConfig, argv, prog="bench_training.py", description=__doc__)
        run_one(config) if config.only else bench_training(config, argv)
    except LmaHfError as error:
        print(f"bench_training.py: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
