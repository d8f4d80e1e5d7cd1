"""Size and speed of models, the tables that show them, and the machine they were measured on."""

import hashlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from lma_hf.compression.quantization.codebooks import FixedCodes
from lma_hf.compression.quantization.fake_quantize import prepared_steps
from lma_hf.errors import ConfigError, DataError
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.surgery.eval_mode import eval_mode

REPORTED_PACKAGES = ("lma_hf", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "onnxruntime")
MIN_TABLE_WIDTH = 100


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen and packed ones included; a tensor that several modules share counts once.

    Codebooks, packed or in training, count as the weights that they stand for.
    """
    packed = sum(module.num_weights for module in packed_modules(model).values())
    steps = [(step, codebook) for step, codebook in prepared_steps(model).values() if isinstance(step, FixedCodes)]
    packed += sum(len(step.codes) * step.row_length - codebook.numel() for step, codebook in steps)
    return packed + sum(parameter.numel() for parameter in model.parameters())


def folder_size_mb(path: Path) -> float:
    """Size of the weights (*.safetensors) in a saved model's folder, in MB (1e6 bytes).

    Raises: DataError if the folder holds none.
    """
    return sum(file.stat().st_size for file in _weight_files(path)) / 1e6


def weights_sha256(path: Path) -> str:
    """SHA-256 of the weights (*.safetensors, in the order of their names) in a saved model's folder.

    Raises: DataError if the folder holds none.
    """
    digest = hashlib.sha256()
    for file in _weight_files(path):
        with open(file, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    weights = sorted(Path(path).glob("*.safetensors"))
    if not weights:
        raise DataError(f"{path} holds no *.safetensors; give the folder of a model saved with save_pretrained")
    return weights


def measure_latency(
    models: Mapping[str, nn.Module],
    make_batch: Callable[[int], Mapping[str, torch.Tensor]],
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 20,
    warmup: int = 3,
) -> dict[str, dict[int, float]]:
    """Median time of a forward pass; the models take turns within each repeat, so that drift hits all alike.

    Args:
        models: by name; put in eval mode for the measurement and back afterwards.
        make_batch: batch size -> keyword arguments of forward, on the models' device.
        repeats, warmup: timed and untimed passes per model and batch size.
    Returns: latency_ms per model name and batch size.
    Raises: ConfigError if repeats < 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}, must be at least 1; the default is 20")
    latency_ms: dict[str, dict[int, float]] = {name: {} for name in models}
    with eval_mode(*models.values()), torch.inference_mode():
        for batch_size in batch_sizes:
            batch = make_batch(batch_size)
            times = [{name: _time_ms(models[name], batch) for name in models} for _ in range(warmup + repeats)]
            for name in models:
                latency_ms[name][batch_size] = statistics.median(turn[name] for turn in times[warmup:])
    return latency_ms


def _time_ms(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> float:
    on_accelerator = any(tensor.device.type != "cpu" for tensor in batch.values())
    if on_accelerator:
        torch.accelerator.synchronize()
    start = time.perf_counter()
    model(**batch)
    if on_accelerator:
        torch.accelerator.synchronize()
    return (time.perf_counter() - start) * 1e3


def results_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Table of results, one column for each key of the first row; numbers stand right, None and gaps show as -.

    Raises: ConfigError if there is no row, or a later row has a key that the first lacks.
    """
    if not rows:
        raise ConfigError(f"the table {title!r} has no rows; give at least one")
    columns = list(rows[0])
    for row in rows:
        if unknown := [key for key in row if key not in columns]:
            raise ConfigError(f"the table {title!r} has no column {unknown[0]!r}; the first row gives {columns}")
    table = Table(title=Text(title))
    for column in columns:
        values = [row[column] for row in rows if row.get(column) is not None]
        numeric = bool(values) and all(_is_number(value) for value in values)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_format_cell(row.get(column))) for column in columns))
    return table


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print `results_table` on stdout, at least 100 columns wide also where there is no terminal."""
    console = Console()
    console.width = max(MIN_TABLE_WIDTH, console.width)
    console.print(results_table(rows, title))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}" if _is_number(value) else str(value)


def environment() -> dict[str, Any]:
    """What a measurement depends on: date (UTC), machine, package versions and commit; no host name, no paths."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        # processors of one name differ in it, and with it the bits of what is computed
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": _git_commit(),
        "versions": {package: _version(package) for package in REPORTED_PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout this file is tracked in, ending in -dirty if tracked files differ from it."""
    # An installed copy can lie inside somebody else's checkout, whose commit would say nothing about us.
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
