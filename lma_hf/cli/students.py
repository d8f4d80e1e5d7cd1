"""The student of a distillation: built from the teacher, or pretrained; with its activation."""

import logging
from dataclasses import asdict

from lma_hf.distillation.fingerprint import tokenizer_fingerprint
from lma_hf.errors import ConfigError
from lma_hf.modeling.configuration_lma import BaselineConfig, LMAConfig
from lma_hf.modeling.swap_record_lma import read_swap
from lma_hf.student.build import build_student
from lma_hf.surgery.calibrate import calibrate_
from lma_hf.surgery.swap import swap_activations_

logger = logging.getLogger(__name__)


def activation_settings(config):
    """The student's activation as a settings object. Raises: ConfigError if a value is not allowed."""
    try:
        if config.activation != "lma":
            return BaselineConfig(config.activation, config.num_segments)
        names = ("num_segments", "range_sigmas", "statistics", "init", "continuous", "per_channel")
        return LMAConfig(**{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_pretrained_student(run, teacher, tokenizer):
    """(the student's tokenizer, its model or None): where none is named it has the teacher's tokenizer.

    Its head has the teacher's labels, in the teacher's order. A tokenizer that works as the teacher's counts as its.
    Raises: ConfigError if it has another one and the teacher would have to read its token ids.
    """
    name, config = run.config.student_name_or_path, teacher.config
    if name is None:
        return tokenizer, None
    head = {key: getattr(config, key) for key in ("num_labels", "id2label", "label2id", "problem_type")}
    its_tokenizer, model = run.load_for_training(name, "student", **head)
    if tokenizer_fingerprint(its_tokenizer) == tokenizer_fingerprint(tokenizer):
        return tokenizer, model
    if not run.config.teacher_cache:
        raise ConfigError(
            f"student {name!r} has another tokenizer than teacher {run.config.teacher!r}; pass --teacher_cache "
            "FOLDER, where the teacher's answers are found by row"
        )
    return its_tokenizer, model


def make_student(teacher, pretrained, activation, batches, config):
    """(student, CalibrationReport of an LMA student or None).

    Args: pretrained: a model to use, or None. One that was swapped before keeps its activations as they are.
    Raises: ConfigError if these are others than `activation`.
    """
    if pretrained is not None and (swap := read_swap(pretrained.config)):
        _check_same_activation(swap.settings, activation, config.student_name_or_path)
        return pretrained, None
    student = pretrained or build_student(
        teacher,
        config.num_layers,
        config.resolved_layer_map,
        activation=None,
        intermediate_size=config.intermediate_size,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        calibration_batches=batches,
    )
    logger.info("%s", swap_activations_(student, activation))
    if activation.name != "lma":
        return student, None
    calibration = calibrate_(student, batches)
    logger.info("%s", calibration)
    return student, calibration


def _check_same_activation(own, wanted, name):
    there, asked = ({"activation": settings.name, **asdict(settings)} for settings in (own, wanted))
    for key, value in asked.items():
        # how an activation starts does not matter to one that is trained
        if key not in ("init", "name") and there.get(key, value) != value:
            raise ConfigError(
                f"student {name!r} was swapped before, with {key} {there[key]!r}, but {key} is {value!r}; pass "
                f"--{key} {there[key]}"
            )
