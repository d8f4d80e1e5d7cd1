"""`lma-hf profile --models`: saved models beside each other, on the texts of the first one's run."""

import dataclasses
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import DatasetDict

from lma_hf.cli.card_rows import read_run
from lma_hf.cli.loading import labels_of_model, load_data, load_tokenizer_and_model, max_positions, unpacked
from lma_hf.compare.saved_models import BATCH, Form, measure_forms
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.metrics import compute_metrics
from lma_hf.export.folder import ONNX, QUANTIZED, export_model
from lma_hf.export.program import input_names
from lma_hf.export.verify import onnx_runner

FILES = {"onnx": ONNX, "onnx-int8": QUANTIZED}


def measure_models(config, threads):
    """Score, size, latency, throughput and peak memory of saved models.

    Args: config: a `ProfileConfig` with `models`. threads: of the CPU.
    Returns: (a dict a model and runtime, what the scores are). Raises: ConfigError, DataError, ExportError.
    """
    run = read_run(next(iter(config.resolved_models.values()))).config
    run = dataclasses.replace(run, dataset=config.dataset or run.dataset)
    splits, task = load_data(run, with_train=False)
    split = task.validation_splits[0]
    texts = DatasetDict({split: splits[split]})
    with TemporaryDirectory() as exports:
        forms = []
        for name, source in config.resolved_models.items():
            forms += forms_of(name, Path(source).expanduser(), config, texts, task, run, threads, Path(exports) / name)
        rows = measure_forms(forms, threads, config.repeats)
    return rows, f"{task.best_metric} x 100 on {len(texts[split])} texts of {task.name}"


def forms_of(name, source, config, texts, task, run, threads, exports):
    """A `Form` for each runtime of a saved model. Args: exports: folder to be, for ONNX files."""
    tokenizer, model = load_tokenizer_and_model(str(source), f"model {name}", complete=True)
    mapping = labels_of_model(model, task, run.dataset, name)
    (rows,) = tokenize_splits(texts, task, tokenizer, run.max_length).values()
    common = {
        "inputs": input_names(model, tokenizer),
        "vocab_size": model.config.vocab_size,
        "max_length": max_positions(model),
        "batches": list(make_dataloader(sort_by_length(rows), tokenizer, BATCH, shuffle=False, seed=0)),
        "score": partial(_score, task, mapping),
    }
    forms = []
    if "pytorch" in config.runtimes:
        size_mb = sum(file.stat().st_size for file in source.iterdir() if file.is_file()) / 1e6
        forms.append(Form(name=name, run=partial(_run, model.eval()), size_mb=size_mb, source=source, **common))
    wanted = [runtime for runtime in config.runtimes if runtime in FILES]
    if wanted:
        # another one, since what is packed in it would be no longer
        _, model = load_tokenizer_and_model(str(source), f"model {name}", complete=True)
        quantize = "int8" if "onnx-int8" in wanted else None
        export_model(unpacked(model), tokenizer, exports, quantize=quantize, max_length=common["max_length"])
    for runtime in wanted:
        path = exports / FILES[runtime]
        values = {"run": onnx_runner(path, threads), "size_mb": path.stat().st_size / 1e6, "source": path}
        forms.append(Form(name=f"{name}, {runtime}", **values, **common))
    return forms


def _run(model, batch):
    return model(**batch).logits


def _score(task, mapping, logits, labels):
    logits = logits if mapping is None else logits[:, mapping]
    return compute_metrics(task, logits, labels)[task.best_metric]
