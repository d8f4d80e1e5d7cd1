"""The folder that an export leaves: there whole and verified, or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError

from lma_hf.errors import ConfigError, ExportError, OutputDirError
from lma_hf.export import verify
from lma_hf.export.attention import ATTENTION_OPSET, ONNX_ATTENTION
from lma_hf.export.onnx import OPSET, check_graph, check_onnx, exportable_to_onnx, operators_of, opset_of, save_onnx
from lma_hf.export.program import exportable, input_names, one_line, to_program
from lma_hf.export.quantize import quantize_onnx
from lma_hf.export.table import TableLMA
from lma_hf.modeling.activation_lma import LMA, FoldedLMA

QUANTIZATIONS = {"onnx": (None, "int8"), "torch": (None,)}  # by format
FORMATS = tuple(QUANTIZATIONS)
ONNX, QUANTIZED, PROGRAM = "model.onnx", "model_quantized.onnx", "model.pt2"
RECORD = "export.json"
RUNNERS = {ONNX: verify.onnx_runner, QUANTIZED: verify.onnx_runner, PROGRAM: verify.program_runner}


def export_model(model, tokenizer, output_dir, *, max_length, format="onnx", quantize=None):
    """Write a model as a folder that other runtimes load, with its config and tokenizer, and verify every file.

    The names are those that Optimum's `ORTModelForSequenceClassification` looks for.

    Args:
        model: a text model whose output has `logits`. tokenizer: its tokenizer.
        output_dir: folder to create; it may exist if it is empty.
        max_length: the longest input that the model has positions for; None: there is no limit.
        format: "onnx" (model.onnx) or "torch" (model.pt2, a torch.export program).
        quantize: None, or "int8" for model_quantized.onnx beside model.onnx.
    Returns: what export.json holds: file name -> opset, size_mb, and how far its logits are from the model's.
    Raises: ConfigError; OutputDirError; MissingDependencyError; ExportError if the model cannot be exported, or a file
        does not compute what the model computes. Then nothing is left behind.
    """
    _check_choices(format, quantize)
    check_output_dir(Path(output_dir))
    if format == "onnx":
        check_onnx()
    names = input_names(model, tokenizer)
    batches = verify.probe_batches(names, model.config.vocab_size, tokenizer.pad_token_id or 0, max_length)
    expected = verify.logits_of_model(model, batches)
    on_edge = verify.rows_on_edge(exportable(model), batches)
    with folder_to_be(Path(output_dir)) as folder:
        write = _write_onnx if format == "onnx" else _write_program
        write(model, names, folder, max_length, quantize)
        record = _verify(folder, expected, batches, on_edge)
        model.config.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _save_tokenizer(tokenizer, folder):
    # a fast tokenizer keeps the truncation and padding of its last call, and other runtimes would apply them
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def _check_choices(format, quantize):
    if format not in FORMATS or quantize not in QUANTIZATIONS[format]:
        allowed = "; ".join(f"{name} with quantize {', '.join(map(str, QUANTIZATIONS[name]))}" for name in FORMATS)
        raise ConfigError(f"format is {format!r} and quantize {quantize!r}, allowed are {allowed}")


def check_output_dir(path):
    """Raises: OutputDirError if an export cannot go there: only a folder that is empty or missing is taken."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputDirError(f"output_dir {path} exists and is no empty folder; choose another folder")
    if path.exists() and path.samefile(os.curdir):
        # what is put in its place would be another one than the one that the shell is in
        raise OutputDirError(f"output_dir {path} is the current folder, which cannot be replaced; choose another")


@contextlib.contextmanager
def folder_to_be(path):
    """A temporary folder beside `path`, which takes its place at the end unless there was an error."""
    check_output_dir(path)
    temporary = path.with_name(f".{path.name}.exporting-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise OutputDirError(f"output_dir {path} cannot be used: {error}; choose another folder") from error
    try:
        yield temporary
        # replaces an empty folder and nothing else
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OutputDirError(f"output_dir {path} cannot be written: {error}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_onnx(model, names, folder, max_length, quantize):
    save_onnx(to_program(exportable_to_onnx(model), names, max_length), names, folder / ONNX, max_length)
    check_graph(folder / ONNX)
    if quantize is not None:
        with tempfile.TemporaryDirectory(dir=folder) as drafts:
            draft = Path(drafts) / ONNX
            _write_draft(model, names, draft, max_length)
            quantize_onnx(draft, folder / QUANTIZED)
        check_graph(folder / QUANTIZED)


def _write_draft(model, names, draft, max_length):
    """What is quantized: with LMA as a table, and attention as one operator where that can be."""
    tables = dict.fromkeys((LMA, FoldedLMA), TableLMA.of)
    for attention, opset in ((ONNX_ATTENTION, ATTENTION_OPSET), ("eager", OPSET)):
        copied = exportable_to_onnx(model, tables, attention)
        save_onnx(to_program(copied, names, max_length), names, draft, max_length, opset)
        # from opset 23 on onnxscript 0.7 writes rotary positions as an operator that ONNX Runtime 1.32 does not run
        if "RotaryEmbedding" not in operators_of(draft):
            return


def _write_program(model, names, folder, max_length, quantize):
    torch.export.save(to_program(exportable(model), names, max_length), folder / PROGRAM)


def _verify(folder, expected, batches, on_edge):
    """Run every file on the batches. Raises: ExportError if one is not the model, which gave the logits expected."""
    record = {"tolerance": verify.TOLERANCE, "files": {}}
    for name, runner in RUNNERS.items():
        if (folder / name).exists():
            outcome = _run_and_compare(expected, runner, folder / name, batches, on_edge)
            # int8 is another function: how far it may be is a question of accuracy on real sentences
            (verify.check_finite if name == QUANTIZED else verify.check)(outcome, name)
            of_onnx = {"opset": opset_of(folder / name)} if name != PROGRAM else {}
            record["files"][name] = {**of_onnx, "size_mb": _size_mb(folder / name), **asdict(outcome)}
    return record


def _run_and_compare(expected, runner, path, batches, on_edge):
    try:
        return verify.compare(expected, runner(path), batches, on_edge)
    except Exception as error:  # what a runtime raises for a file that it cannot run
        raise ExportError(f"{path.name} does not run: {one_line(error)}; nothing was kept") from error


def _size_mb(path):
    """In MB (1e6 bytes), weights in a file beside it included."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6
