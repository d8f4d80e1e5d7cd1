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
from lma_hf.export.torchao import compile_int8
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
    folder = {"size_mb": sum(file.stat().st_size for file in source.iterdir() if file.is_file()) / 1e6}
    if set(config.runtimes) & set(FILES):
        quantize = "int8" if "onnx-int8" in config.runtimes else None
        export_model(
            unpacked(_load(source, name)), tokenizer, exports, quantize=quantize, max_length=common["max_length"]
        )
    forms = []
    for runtime in config.runtimes:
        if runtime == "pytorch":
            form = {"name": name, "run": partial(_run, model.eval()), "source": source, **folder}
        elif runtime == "torchao-int8":
            form = {"run": partial(_run, compile_int8(unpacked(_load(source, name)))), "source": None, **folder}
        else:
            path = exports / FILES[runtime]
            form = {"run": onnx_runner(path, threads), "size_mb": path.stat().st_size / 1e6, "source": path}
        forms.append(Form(**{"name": f"{name}, {runtime}", **form}, **common))
    return forms


def _load(source, name):
    # a model of its own, since what is packed in one that was exported would be no longer
    return load_tokenizer_and_model(str(source), f"model {name}", complete=True)[1]


def _run(model, batch):
    return model(**batch).logits


def _score(task, mapping, logits, labels):
    logits = logits if mapping is None else logits[:, mapping]
    return compute_metrics(task, logits, labels)[task.best_metric]
