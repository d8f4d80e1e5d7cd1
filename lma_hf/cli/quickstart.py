"""`lma-hf quickstart`: from nothing to a distilled LMA student on a real BERT and real text, without a hub."""

import dataclasses
import json
import os
import time
from pathlib import Path

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lma_hf.cli.accelerator import computes_in_bf16
from lma_hf.cli.distill import distill
from lma_hf.cli.evaluate import score_saved_model
from lma_hf.cli.parser import to_yaml
from lma_hf.cli.teach import teach
from lma_hf.compare.profiling import environment, measure_latency, print_table
from lma_hf.data.quickstart import fetch_pretrained, fetch_reviews, load_reviews, write_reviews
from lma_hf.errors import ConfigError
from lma_hf.student.layer_map import resolve_layer_map
from lma_hf.training.checkpoint import RESULTS, RUN_CONFIG, check_output_dir, claim_output_dir, write_json
from lma_hf.training.config import DistillConfig, EvaluateConfig, TeachConfig

LATENCY_BATCH_SIZES = (1, 32)
STUDENTS = ("gelu", "lma")
MAX_LENGTH = 64
STUDENT_LEARNING_RATE = 2e-4
TITLE = "Movie reviews, fresh or rotten: accuracy in %, CPU latency in ms at batch 1 and 32"
HEADINGS = ("model", "layers", "parameters", "size MB", "validation %", "test %", "ms (1)", "ms (32)")


def quickstart(config):
    """Fine-tune a teacher on movie reviews, distil a GELU and an LMA student, and print how they compare.

    Args: config: a `QuickstartConfig`.
    Returns: the rows of the table, which results.json holds too.
    """
    start = time.perf_counter()
    folder, cache = Path(config.output_dir).expanduser(), Path(config.cache_dir).expanduser()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("quickstart runs on one process; use teach and distill for several")
    check_output_dir(folder, config.overwrite_output_dir)
    say("1/5 fetching a pretrained BERT (MiniLM-L6) and movie reviews")
    pretrained = fetch_pretrained(cache, _path(config.pretrained))
    resolve_layer_map("uniform", config.num_layers, AutoConfig.from_pretrained(pretrained).num_hidden_layers)
    splits = load_reviews(fetch_reviews(cache, _path(config.reviews)))
    claim_output_dir(folder)
    resolved = dataclasses.replace(config, overwrite_output_dir=False)
    to_yaml(resolved, folder / RUN_CONFIG, f"lma-hf quickstart {folder / RUN_CONFIG} --output_dir ANOTHER_FOLDER")
    write_reviews(splits, folder / "data")
    say("    " + ", ".join(f"{len(rows):,} {name} rows" for name, rows in splits.items()))

    common = common_settings(config)
    say("2/5 fine-tuning the teacher")
    teach(
        TeachConfig(
            model_name_or_path=str(pretrained),
            output_dir=str(folder / "teacher"),
            num_train_epochs=config.teacher_epochs,
            **common,
        )
    )
    for number, activation in enumerate(STUDENTS, start=3):
        say(f"{number}/5 distilling the {config.num_layers}-layer student with {activation.upper()}")
        distill(
            DistillConfig(
                teacher=str(folder / "teacher"),
                output_dir=str(folder / f"student-{activation}"),
                activation=activation,
                learning_rate=STUDENT_LEARNING_RATE,
                num_layers=config.num_layers,
                num_train_epochs=config.student_epochs,
                **common,
            )
        )
    say("5/5 measuring")
    rows = compare(folder, list(splits["validation"]["text"]))
    write_json({"table": rows, "environment": environment()}, folder / RESULTS)
    print_table([dict(zip(HEADINGS, row.values(), strict=True)) for row in rows], TITLE)
    show_how_to_load(folder / "student-lma", splits["test"]["text"][0])
    say(f"done in {(time.perf_counter() - start) / 60:.1f} minutes")
    return rows


def say(line):
    """Print a line of progress at once."""
    print(line, flush=True)


def common_settings(config):
    """What the three training runs share."""
    return {
        "dataset": str(Path(config.output_dir).expanduser() / "data"),
        "text_columns": ["text"],
        "max_length": MAX_LENGTH,
        "max_train_samples": config.max_train_samples,
        "freeze_embeddings": True,
        "mixed_precision": config.mixed_precision or ("bf16" if computes_in_bf16() else "no"),
        "seed": config.seed,
    }


def compare(folder, texts):
    """One row a model: size, scores from the saved files, CPU latency with the models taking turns."""
    names = ["teacher", *(f"student-{activation}" for activation in STUDENTS)]
    models = {name: AutoModelForSequenceClassification.from_pretrained(folder / name) for name in names}
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")

    def make_batch(size):
        rows = (texts * size)[:size]
        return tokenizer(rows, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")

    latency_ms = measure_latency(models, make_batch, LATENCY_BATCH_SIZES)
    return [_row(folder / name, models[name], latency_ms[name]) for name in models]


def _row(model_dir, model, latency_ms):
    results = json.loads((model_dir / RESULTS).read_text(encoding="utf-8"))
    return {
        "model": model_dir.name,
        "layers": model.config.num_hidden_layers,
        "parameters": results["num_parameters"],
        "size_mb": results["size_mb"],
        "validation_accuracy": 100 * _accuracy(model_dir, "validation"),
        "test_accuracy": 100 * _accuracy(model_dir, "test"),
        **{f"latency_ms_batch_{size}": value for size, value in latency_ms.items()},
    }


def _accuracy(model_dir, split):
    config = EvaluateConfig(
        model_dir=str(model_dir),
        dataset=str(model_dir.parent / "data"),
        text_columns=["text"],
        validation_split=split,
        max_length=MAX_LENGTH,
        mixed_precision="no",
    )
    return score_saved_model(config)[split]["accuracy"]


def show_how_to_load(model_dir, text):
    """Print the lines of Python that load the student."""
    say(f"\nThe LMA student is saved in {model_dir}. To use it:\n")
    say("    import lma_hf, transformers")
    say(f'    classify = transformers.pipeline("text-classification", "{model_dir}")')
    say(f"    print(classify({text!r}))\n")


def _path(value):
    return None if value is None else Path(value).expanduser()
