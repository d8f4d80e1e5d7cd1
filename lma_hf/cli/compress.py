"""`lma-hf compress`: a saved model with weights of few bits, packed, and with the tokens alone that a task has."""

import logging
import os
from dataclasses import asdict
from pathlib import Path

from datasets import DatasetDict

from lma_hf.cli.compressed_run import check_finished_run, earlier_steps, write_compression, write_records
from lma_hf.cli.compressed_training import train_compressed
from lma_hf.cli.loading import check_max_length, load_data, load_model_dir
from lma_hf.cli.quantization import scheme_of, scheme_record
from lma_hf.compare.profiling import count_parameters
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.compression.vocabulary import trim_vocabulary_, unknown_report
from lma_hf.data.collate import make_dataloader, tokenize_splits
from lma_hf.errors import ConfigError
from lma_hf.export.folder import folder_to_be
from lma_hf.training.checkpoint import save_tokenizer

logger = logging.getLogger(__name__)
BATCH = 32


def compress(config):
    """Make a saved sequence classification model small.

    Args: config: a `CompressConfig`.
    Returns: what compression.json holds: the recipe, what it and those before it did to tokens and weights, and the
        folder's size in MB.
    """
    if config.trains:
        return train_compressed(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"recipe is {config.recipe!r}, which runs on one process; start it without a launcher")
    model_dir = Path(config.model_dir).expanduser()
    if config.score:
        check_finished_run(model_dir)
    with folder_to_be(Path(config.output_dir).expanduser()) as folder:
        tokenizer, model = load_model_dir(config)
        if config.calibration_samples is not None:
            check_max_length(config, model)
        splits, task = load_data(config, with_train=True) if config.needs_texts else (None, None)
        record = {**earlier_steps(config.model_dir), "recipe": config.recipe}
        if config.trim_vocabulary:
            tokenizer, record["vocabulary"] = trim(model, tokenizer, splits, task, config.vocabulary_min_count)
        if config.recipe != "float32":
            batches = calibration_batches(tokenizer, splits, task, config)
            record["weights"] = quantize(model, batches, config)
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        if config.score:
            scores = write_records(config, folder, dict(record), count_parameters(model))
            logger.info("scores of the compressed model: %s", scores)
        return write_compression(record, folder)


def trim(model, tokenizer, splits, task, min_count):
    """(new tokenizer, what compression.json says): cut to the training texts, and what that does to the others."""
    texts = {
        name: list(zip(*(rows[column] for column in task.text_columns), strict=True)) for name, rows in splits.items()
    }
    trimmed, report = trim_vocabulary_(model, tokenizer, texts.pop(task.train_split), min_count=min_count)
    logger.info("%s", report)
    record = {**asdict(report), "task": task.name, "min_count": min_count, "splits": {}}
    for name, others in texts.items():
        lost = unknown_report(tokenizer, trimmed, others)
        logger.info("%s: %s", name, lost)
        record["splits"][name] = asdict(lost)
    return trimmed, record


def calibration_batches(tokenizer, splits, task, config):
    """Batches of random training rows as the model reads them; None where the config asks for none."""
    if config.calibration_samples is None:
        return None
    rows = splits[task.train_split].shuffle(seed=config.seed)
    rows = rows.select(range(min(config.calibration_samples, len(rows))))
    tokenized = tokenize_splits(DatasetDict({task.train_split: rows}), task, tokenizer, config.max_length)
    return list(make_dataloader(tokenized[task.train_split], tokenizer, BATCH, shuffle=False, seed=config.seed))


def quantize(model, batches, config):
    """Pack the weights. Returns: what compression.json says."""
    scheme = scheme_of(config.recipe, config.quantize_group_size)
    report = quantize_(model, scheme, modules_to_not_convert=config.modules_to_not_convert, batches=batches)
    logger.info("%s", report)
    record = {
        **scheme_record(scheme),
        "calibration_samples": config.calibration_samples,
        "modules": list(report.quantized),
    }
    sizes = {"size_mb": report.size_mb, "size_mb_before": report.size_mb_before, "sqnr_db": report.sqnr_db}
    return record | sizes
