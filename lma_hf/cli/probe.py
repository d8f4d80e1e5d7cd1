"""`lma-hf probe`: how many hidden units an activation is worth, in minutes and with little noise."""

import csv
import dataclasses
import logging
import time
from pathlib import Path

import torch
from datasets import DatasetDict

from lma_hf.cli.loading import check_max_length, load_tokenizer_and_model
from lma_hf.cli.parser import to_yaml
from lma_hf.compare.arms import parse_arms
from lma_hf.compare.probe import COLUMNS, Plan, Probe
from lma_hf.compare.probe_plot import draw_probe
from lma_hf.compare.probe_report import markdown
from lma_hf.compare.probe_vectors import collect_ffns
from lma_hf.compare.probe_worth import chosen_errors, error_table, rates_table, worth_table
from lma_hf.compare.profiling import environment
from lma_hf.compare.roofline_plot import check_matplotlib
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.glue import hub_configuration, resolve_task
from lma_hf.data.sources import load_texts
from lma_hf.errors import ConfigError, DataError
from lma_hf.training.checkpoint import RESULTS, RUN_CONFIG, check_output_dir, claim_output_dir, write_json

logger = logging.getLogger(__name__)

CSV, TABLE, PICTURE, ENVIRONMENT = "probe.csv", "probe.md", "probe.png", "environment.json"


def probe(config):
    """Fit narrow FFNs to a model's own with each activation; the results land in config.output_dir.

    Args: config: a `ProbeConfig`.
    Returns: what results.json holds.
    """
    arms = parse_arms(config.activations)
    check_reference(config.reference, arms)
    check_matplotlib()
    folder = Path(config.output_dir).expanduser()
    check_output_dir(folder, config.overwrite_output_dir, [config.dataset, config.model_name_or_path])
    start, described = time.perf_counter(), environment()
    ffns = load_ffns(config)
    plan = make_plan(config, arms, ffns)
    claim_output_dir(folder)
    resolved = dataclasses.replace(
        config, widths=plan.widths, layers=[ffn.layer for ffn in ffns], overwrite_output_dir=False
    )
    to_yaml(resolved, folder / RUN_CONFIG, f"lma-hf probe {folder / RUN_CONFIG} --output_dir ANOTHER_FOLDER")
    rows = Probe(ffns, plan).run()
    described["seconds"] = round(time.perf_counter() - start)
    return write_results(folder, rows, config.reference, described)


def check_reference(reference, arms):
    """Raises: ConfigError if the reference is none of the arms."""
    names = [arm.name for arm in arms]
    if reference not in names:
        raise ConfigError(f"reference is {reference!r}, allowed is one of activations: {', '.join(names)}")


def load_ffns(config):
    """The model's FFNs with what they do to real texts: those of the training split, and of the validation split."""
    tokenizer, model = load_tokenizer_and_model(config.model_name_or_path, "model")
    check_max_length(config, model)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    task = resolve_task(config)
    train = load_rows(config, task, task.train_split, config.max_train_samples)
    held_out = load_rows(config, task, task.validation_splits[0], config.max_eval_samples)
    if len(held_out) < 2:
        raise DataError(f"split '{task.validation_splits[0]}' has 1 row; at least 2 are needed to tune and to report")
    half = len(held_out) // 2
    parts = {"train": train, "tuning": held_out.select(range(half)), "report": held_out.select(range(half, 2 * half))}
    tokenized = tokenize_splits(DatasetDict(parts), task, tokenizer, config.max_length)
    ffns = collect_ffns(model, config.layers, {part: batches(tokenized[part], tokenizer, config) for part in parts})
    counts = ", ".join(f"{len(getattr(ffns[0], part).x):,} {part}" for part in parts)
    logger.info("token vectors of layers %s: %s", ", ".join(str(ffn.layer) for ffn in ffns), counts)
    return ffns


def load_rows(config, task, split, count):
    """Texts of a split in an order that the seed fixes, at most `count`. Raises: DataError if it is not there."""
    rows = load_texts(config.dataset, task, split, dataset_config=hub_configuration(config))
    if rows is None:
        raise DataError(
            f"{config.dataset} has no split '{split}' with texts; name another in --train_split or --validation_split"
        )
    generator = torch.Generator().manual_seed(config.seed)
    return rows.select(torch.randperm(len(rows), generator=generator)[:count].tolist())


def batches(rows, tokenizer, config):
    """Batches of rows of similar lengths."""
    size = config.per_device_eval_batch_size
    return list(make_dataloader(sort_by_length(rows), tokenizer, size, shuffle=False, seed=config.seed))


def make_plan(config, arms, ffns):
    """The `Plan` of a config. Raises: ConfigError if a width is more than the model has."""
    width = len(ffns[0].ranking)
    widths = config.widths or sorted({max(1, width // share) for share in (16, 8, 4)})
    if widths[-1] > width:
        raise ConfigError(f"widths names {widths[-1]}, the model's FFNs have {width} units; allowed are 1 to {width}")
    seeds = [config.seed + index for index in range(config.num_seeds)]
    rates = config.learning_rates, config.activation_learning_rates
    return Plan(arms, widths, seeds, *rates, config.num_steps, config.batch_size)


def write_results(folder, rows, reference, described):
    """Write the fits, the tables and the picture. Returns: what results.json holds."""
    with open(folder / CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    errors = chosen_errors(rows)
    results = {
        "reference": reference,
        "num_layers": len({row["layer"] for row in rows}),
        "num_seeds": len({row["seed"] for row in rows}),
        "errors": error_table(errors, reference),
        "worth": worth_table(errors, reference),
        "learning_rates": rates_table(rows),
    }
    write_json(results, folder / RESULTS)
    write_json(described, folder / ENVIRONMENT)
    text = markdown(results)
    (folder / TABLE).write_text(text, encoding="utf-8")
    draw_probe(results, folder / PICTURE)
    print(text)
    logger.info("wrote %s into %s", ", ".join((RESULTS, CSV, TABLE, PICTURE, ENVIRONMENT)), folder)
    return results
