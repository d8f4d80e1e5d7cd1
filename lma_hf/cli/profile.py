"""`lma-hf profile`: which kernel computes LMA on this machine, and how fast it is beside other activations."""

import csv
import time
from pathlib import Path

import torch

from lma_hf.cli.loading import load_tokenizer_and_model, max_positions, unpacked
from lma_hf.cli.profile_models import FILES, measure_models
from lma_hf.compare import activation_benchmark, export_benchmark, model_benchmark
from lma_hf.compare.activation_benchmark import SLOW, describe_kernel, left_out
from lma_hf.compare.profiling import environment, print_table
from lma_hf.compare.roofline_plot import DOTS_PER_INCH, can_be_plotted, check_matplotlib, plot_name, plot_rooflines
from lma_hf.compare.saved_models import pareto_picture
from lma_hf.compare.timing import MODES, hold_memory, write_csv
from lma_hf.errors import ConfigError, OutputDirError
from lma_hf.export.onnx import check_onnx
from lma_hf.export.torchao import check_torchao
from lma_hf.kernels.registry import resolve
from lma_hf.training.checkpoint import write_json
from lma_hf.training.config import check_names

CANDIDATES = {
    "activation": activation_benchmark.CANDIDATES,
    "ffn": model_benchmark.FFN_CANDIDATES,
    "model": model_benchmark.MODEL_CANDIDATES,
    "export": export_benchmark.EXPORT_CANDIDATES,
}
CSV, ENVIRONMENT = "benchmark.csv", "environment.json"
MODELS_CSV, MODELS_PICTURE = "models.csv", "models.png"


def profile(config):
    """Print which kernel computes LMA here and why, then the time and memory of LMA beside other activations.

    With `models` it puts saved models beside each other instead.

    Args: config: a `ProfileConfig`.
    Returns: the rows of benchmark.csv, or of models.csv.
    """
    threads = config.threads or [torch.get_num_threads()]
    if config.models:
        return profile_models(config, threads[0])
    check_candidates(config)
    if "export" in config.parts:
        check_onnx()
    if config.output_dir is not None:
        prepare_output_dir(Path(config.output_dir).expanduser(), output_names(config, threads))
    show_kernels()
    if config.hold_memory:
        hold_memory()
    rows, described = [], environment()
    for group in run_parts(config, threads):
        rows += group
    for table in tables(rows):
        print_table(*table)
    if config.output_dir is not None:
        write_results(Path(config.output_dir).expanduser(), rows, described)
    return rows


def profile_models(config, threads):
    """Put saved models beside each other. Returns: the rows of models.csv."""
    folder = config.output_dir and Path(config.output_dir).expanduser()
    if set(config.runtimes) & set(FILES):
        check_onnx()
    if "torchao-int8" in config.runtimes:
        check_torchao()
    if folder:
        prepare_output_dir(folder, [MODELS_CSV, MODELS_PICTURE, ENVIRONMENT])
    rows, scores = measure_models(config, threads)
    print_table(rows, f"{scores}; CPU, {threads} thread{'s' * (threads > 1)}")
    if folder:
        with open(folder / MODELS_CSV, "x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        pareto_picture(rows, scores).savefig(folder / MODELS_PICTURE, dpi=DOTS_PER_INCH)
        write_json({**environment(), "torch_threads": threads, "scores": scores}, folder / ENVIRONMENT)
        say(f"wrote {MODELS_CSV}, {MODELS_PICTURE}, {ENVIRONMENT} into {folder}")
    return rows


def check_candidates(config):
    """Raises: ConfigError if a candidate is unknown, or a part has none of those named."""
    known = [name for names in CANDIDATES.values() for name in names]
    check_names("candidates", config.candidates, list(dict.fromkeys(known)))
    for part in config.parts:
        if not candidates_of(part, config):
            raise ConfigError(f"candidates names none that part {part} has: {', '.join(CANDIDATES[part])}")


def candidates_of(part, config):
    """Names of the candidates of a part, in its order."""
    return [name for name in CANDIDATES[part] if config.candidates is None or name in config.candidates]


def output_names(config, threads):
    """Names of the files that the run will write."""
    names = [CSV, ENVIRONMENT]
    if "activation" in config.parts and can_be_plotted(candidates_of("activation", config)):
        names += [plot_name(dtype, count) for dtype in config.dtypes for count in threads]
    return names


def prepare_output_dir(folder, names):
    """Create the folder and check that nothing in it is in the way.

    Raises: OutputDirError if it cannot be created or holds one of the files; MissingDependencyError if there will be
        plots and matplotlib is missing.
    """
    if any(name.endswith(".png") for name in names):
        check_matplotlib()
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise OutputDirError(f"output_dir {folder} holds {there[0]} of another run; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirError(f"output_dir {folder} cannot be used: {error}; choose another folder") from error


def show_kernels():
    """Print who computes LMA on every type of device that this machine has."""
    devices = ["cpu", *([torch.accelerator.current_accelerator().type] if torch.accelerator.is_available() else ())]
    for device in devices:
        kernel, reason = resolve(device)
        say(f"LMA on {device}: kernel {describe_kernel(kernel)}" + (f", since {reason}" if reason else ""))


def run_parts(config, threads):
    """Run the benchmarks that the config names, with a line of progress a group; yields the rows of each group."""
    large = ["x".join(map(str, shape)) for shape in config.resolved_shapes if left_out(shape, "training")]
    if "activation" in config.parts and config.candidates is None and large:
        say(f"left out in training at {', '.join(large)}: {', '.join(SLOW)}; name them in --candidates to have them")
    start = time.perf_counter()
    for group in _groups(config, threads):
        setting = " ".join(str(group[0][key]) for key in ("kind", "shape", "dtype", "mode"))
        seconds = time.perf_counter() - start
        say(f"{seconds:6.0f} s  {setting}, threads {group[0]['threads']}: {len(group)} candidates")
        yield group


def _groups(config, threads):
    for part in config.parts:
        names = candidates_of(part, config)
        if part == "activation":
            chosen = names if config.candidates else None
            yield from activation_benchmark.measure_activations(
                config.resolved_shapes, config.dtypes, threads, chosen, config.repeats
            )
        elif part == "export":
            tokenizer, model = load_tokenizer_and_model(config.model_dir, "model", complete=True)
            positions = max_positions(model)
            yield from export_benchmark.measure_exports(
                unpacked(model), tokenizer, positions, max(threads), names, config.repeats
            )
        else:
            measure = model_benchmark.measure_ffns if part == "ffn" else model_benchmark.measure_models
            yield from measure(config.dtypes, max(threads), names, config.repeats)


def say(line):
    """Print a line at once."""
    print(line, flush=True)


def tables(rows):
    """(rows, title) of a table for each shape, dtype and number of threads, both modes side by side."""
    groups = {}
    for row in rows:
        groups.setdefault((row["kind"], row["shape"], row["dtype"], row["threads"]), []).append(row)
    return [(_table_rows(group), _title(*key)) for key, group in groups.items()]


def _title(kind, shape, dtype, threads):
    return f"{kind} {shape}, {dtype}, {threads} thread{'s' * (threads > 1)}: medians and their ratios"


def _table_rows(group):
    """One row a candidate; columns in which nothing stands are left out."""
    unit, factor = ("us", 1e3) if min(row["median_ms"] for row in group) < 0.1 else ("ms", 1.0)
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in group)]
    table = {}
    for name in dict.fromkeys(row["candidate"] for row in group):
        by_mode = {row["mode"]: row for row in group if row["candidate"] == name}
        cells = {"candidate": name}
        for mode in modes:
            row = by_mode.get(mode, {})
            cells[f"{mode} {unit}"] = row["median_ms"] * factor if row else None
            cells[f"{mode} / gelu"], cells[f"{mode} / copy"] = row.get("ratio_to_gelu"), row.get("ratio_to_copy")
        kept = by_mode.get("training", {}).get("kept_bytes")
        size = next(iter(by_mode.values()))["size_mb"]
        table[name] = {**cells, "kept MB": None if kept is None else kept / 1e6, "size MB": size}
    filled = {key for cells in table.values() for key, value in cells.items() if value is not None}
    return [{key: value for key, value in cells.items() if key in filled} for cells in table.values()]


def write_results(folder, rows, described):
    """Write the rows, the machine and versions they were measured on, and the plots of the activations."""
    write_csv(rows, folder / CSV, described)
    write_json(described, folder / ENVIRONMENT)
    plots = plot_rooflines(rows, folder)
    say(f"wrote {', '.join([CSV, ENVIRONMENT, *plots])} into {folder}")
