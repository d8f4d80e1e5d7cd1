"""Recipes of `lma-hf compress` that train: a saved model goes on as a student, with rounded weights or codebooks."""

import contextlib
import json
import logging
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml
from accelerate import PartialState

from lma_hf.cli.compressed_run import RECORD, earlier_steps, reading_now, write_compression
from lma_hf.cli.distill import distill
from lma_hf.cli.loading import load_model_dir
from lma_hf.compression.quantization.targets import by_layer, candidates, quantizable_modules
from lma_hf.data.sources import is_local
from lma_hf.distillation.objective import FEATURES
from lma_hf.errors import ConfigError, OutputDirError
from lma_hf.modeling.swap_record_lma import NAMES_OF_ACTIVATION, NATIVE
from lma_hf.training.checkpoint import RESULTS, RUN_CONFIG, check_output_dir, write_json
from lma_hf.training.config import DistillConfig
from lma_hf.training.resume import check_same_settings
from lma_hf.training.run_checkpoints import FOLDER as CHECKPOINTS
from lma_hf.training.run_checkpoints import disk_errors_are_ours

logger = logging.getLogger(__name__)
QUANTIZE = {"qat8": "int8", "qat4": "int4", "qat2": "int2", "pq": "pq", "ipq": "pq"}
CACHE = "teacher_cache"
# what a run may have asked for that needs layers taken from the teacher, which a student that goes on has not
ALONG_LAYERS = (
    *("num_layers", "layer_map", "intermediate_size", "hidden_size", "num_attention_heads"),
    *("activation_warmup_steps", "feature_stage", "replacement_rate", "schedules"),
    *(f"{part}_loss_weight" for part in FEATURES),
)


def train_compressed(config):
    """Let a run's model go on as a student of the run's teacher, or of itself, with quantized weights.

    Everything that `config` does not say is as in the run, losses along layers left out.

    Args: config: a `CompressConfig` whose recipe trains.
    Returns: what compression.json holds. Raises: ConfigError if model_dir is not the output_dir of a run;
        OutputDirError.
    """
    config = with_whole_paths(config)
    output_dir = Path(config.output_dir)
    check_output_dir(output_dir, config.resume, [config.model_dir], resumable=True, overwritable=False)
    if config.resume and (output_dir / RECORD).is_file():
        return finished_record(output_dir, config)
    earlier = output_dir.with_name(f"{output_dir.name}-stages")
    check_stages(earlier, config.resume)
    _, model = load_model_dir(config)
    settings, stages = distill_config(config, model), stages_of(model, config)
    # each training asks the same of the teacher, which may read other tokens than a student that was cut to a task's
    settings = replace(settings, teacher_cache=settings.teacher_cache or str(earlier / CACHE))
    del model
    folders = [*(earlier / str(number) for number in range(1, len(stages))), output_dir]
    students = [config.model_dir, *folders]
    for student, folder, stage in zip(students, folders, stages, strict=False):
        logger.info("training %s of %d", folder.name if folder != output_dir else len(stages), len(stages))
        results = distill(replace(settings, **stage, student_name_or_path=str(student), output_dir=str(folder)))
    record = {**earlier_steps(config.model_dir), "recipe": config.recipe, "weights": results["quantization"]}
    if PartialState().is_main_process:
        # many times the size of what was made small
        shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
        with disk_errors_are_ours(output_dir):
            write_json({**results, "compression": record}, output_dir / RESULTS)
            record = write_compression({**record, "settings": asdict(config)}, output_dir)
        remove_stages(earlier)
    return record


def check_stages(folder, resume):
    """Raises: OutputDirError if the folder of all trainings but the last holds what none of them has put there.

    Or a training that has begun, and there is none to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputDirError(f"{folder}, where all trainings but the last go, is a file; choose another output_dir")
    if foreign := [path.name for path in children(folder) if not is_stage(path)]:
        raise OutputDirError(
            f"{folder}, where all trainings but the last go, holds {min(foreign)!r}, which is of none, and would "
            "be removed at the end; choose another output_dir"
        )
    if not resume and any((path / RUN_CONFIG).is_file() for path in children(folder)):
        raise OutputDirError(
            f"{folder} holds trainings of a command that was interrupted; pass --resume true to go on with it, remove "
            "that folder, or choose another output_dir"
        )


def remove_stages(folder):
    """Remove what trainings have put there, and nothing else."""
    for path in filter(is_stage, children(folder)):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # there is more in it, or it is not there
        folder.rmdir()


def is_stage(path):
    """Whether a path is a numbered training's folder, or that of the teacher's answers."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = {child.name for child in path.iterdir()}
    # one that was killed at its start has hidden files at most
    is_run = RUN_CONFIG in names or all(name.startswith(".") for name in names)
    return path.name == CACHE or (path.name.isdecimal() and is_run)


def children(folder):
    """What lies in a folder; nothing if it is not there."""
    return list(folder.iterdir()) if folder.is_dir() else []


def with_whole_paths(config):
    """The config as a later --resume compares it: however a folder is spelled, it is the same folder."""
    model_dir = whole_path(config.model_dir) if is_local(config.model_dir) else config.model_dir
    num_train_epochs = config.num_train_epochs or 1
    return replace(
        config, model_dir=model_dir, output_dir=whole_path(config.output_dir), num_train_epochs=num_train_epochs
    )


def whole_path(path):
    return str(Path(path).expanduser().resolve())


def finished_record(output_dir, config):
    """What compression.json holds. Raises: ConfigError if it was made with other settings, naming them."""
    record = json.loads((output_dir / RECORD).read_text(encoding="utf-8"))
    # older ones say only the recipe
    before = record.get("settings", {**asdict(config), "recipe": record["recipe"]})
    check_same_settings(config, before, output_dir)
    return record


def distill_config(config, model):
    """The `DistillConfig` of the first training."""
    path = Path(config.model_dir) / RUN_CONFIG
    if not path.is_file():
        raise ConfigError(
            f"recipe is {config.recipe!r}, which trains as model_dir was trained, but {config.model_dir} holds no "
            f"{RUN_CONFIG} of a run; use `lma-hf distill --student_name_or_path ... --quantize ...`"
        )
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(DistillConfig)} - set(ALONG_LAYERS)
    settings = {key: value for key, value in run.items() if key in known}
    if "teacher" not in settings:
        # a model that was fine-tuned has no teacher but itself
        settings |= {"teacher": config.model_dir, "activation": own_activation(model)}
    settings |= {
        "quantize": QUANTIZE[config.recipe],
        "quantize_group_size": config.quantize_group_size,
        "noise_rate": 1.0,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": None,
        "overwrite_output_dir": False,
        "resume": config.resume,
        "student_name_or_path": config.model_dir,
        "output_dir": config.output_dir,
        **reading_now(config, run),
    }
    return DistillConfig(**settings)


def own_activation(model):
    """The name of the activation that a model came with. Raises: ConfigError if `distill` would put in another."""
    names = {getattr(model.config, key) for key in NAMES_OF_ACTIVATION if hasattr(model.config, key)}
    if len(names) != 1 or not names <= set(NATIVE):
        raise ConfigError(
            f"the model's activation is {', '.join(map(str, names)) or 'unknown'}, allowed for a recipe that trains "
            f"are {', '.join(NATIVE)}; use recipe int8 or int4"
        )
    return names.pop()


def stages_of(model, config):
    """For each training, what is particular to it of a `DistillConfig`.

    With a noise_rate the first one has Quant-Noise, and leaves weights in float.
    """
    kept = config.modules_to_not_convert
    noisy = [{"modules_to_not_convert": kept, "noise_rate": config.noise_rate}] if config.noise_rate else []
    rate = {"learning_rate": config.learning_rate} if config.learning_rate else {}
    growing = layer_by_layer(model, kept) if config.recipe == "ipq" else []
    return [*noisy, *({"modules_to_not_convert": left, **rate} for left in (*growing, kept))]


def layer_by_layer(model, kept):
    """What stays in float32 in each training of iPQ but the last (Stock et al. 2020, arXiv 1907.05686, section 3.3).

    It quantizes layer after layer, from the first, and trains after each, so that the layers above get used to it.
    Embeddings go with the first layer, what follows the last one with it.
    """
    layers = by_layer(quantizable_modules(model, kept))
    ends = [index for index, fqns in enumerate(layers) if len(fqns) > 1][1:]
    done = [{fqn for fqns in layers[:end] for fqn in fqns} for end in ends]
    return [[fqn for fqn in candidates(model) if fqn not in quantized] for quantized in done]
