"""`lma-hf distill`: teacher -> activation surgery -> shallow student -> distilled."""

import logging
from dataclasses import asdict
from itertools import islice

from lma_hf.cli.extra_data import add_unlabelled
from lma_hf.cli.loading import load_data
from lma_hf.cli.objective import make_objective
from lma_hf.cli.run import TrainingRun
from lma_hf.cli.teachers import CheckedTeacher, answering, labels_of_teacher, load_extra_teachers
from lma_hf.distillation.objective import paired_states
from lma_hf.errors import ConfigError
from lma_hf.modeling.configuration_lma import BaselineConfig, LMAConfig
from lma_hf.student.build import build_student
from lma_hf.student.layer_map import resolve_layer_map
from lma_hf.student.warmup import warm_up_ffns_
from lma_hf.surgery.calibrate import calibrate_
from lma_hf.surgery.swap import swap_activations_

logger = logging.getLogger(__name__)


def distill(config):
    """Distil a student from a fine-tuned teacher; the best student lands in config.output_dir.

    Args: config: a `DistillConfig`.
    Returns: what results.json holds.
    """
    activation = activation_settings(config)
    run = TrainingRun(config, "distill", config.teacher)
    if run.finished_results is not None:
        return run.finished_results
    splits, task = load_data(config, with_train=True)
    tokenizer, teacher = run.load(config.teacher, "teacher")
    layer_map = resolve_layer_map(config.resolved_layer_map, config.num_layers, teacher.config.num_hidden_layers)
    mapping = labels_of_teacher(teacher, task, config)
    models = [(config.teacher, teacher, list(range(teacher.config.num_labels)))]
    models += load_extra_teachers(run, task, tokenizer, teacher)
    splits, labelled_share = add_unlabelled(splits, task, config)
    tokenized = run.tokenize(splits, task, tokenizer, mapping)
    evaluator = run.evaluator(tokenized, task, tokenizer, mapping)
    teachers = [CheckedTeacher(run, *named, tokenizer, tokenized, task, mapping) for named in models]
    batches = calibration_batches(run, tokenized[task.train_split], tokenizer)
    student, calibration = make_student(teacher, activation, batches, config)
    run.freeze_(student)
    warmup = warm_up(run, student, teacher, layer_map, tokenized[task.train_split], tokenizer)
    states = paired_states(layer_map, config.weighted_parts, config.hidden_cosine_layers)
    answers, rows = answering(teachers, tokenized[task.train_split], states, config)
    objective = make_objective(answers, teacher, student, layer_map, config, labelled_share)
    records = {
        "activation": {"name": activation.name, **asdict(activation)},
        "layer_map": layer_map,
        "teacher": teachers[0].record,
        "extra_teachers": [extra.record for extra in teachers[1:]],
        "calibration": calibration and asdict(calibration),
        "activation_warmup": warmup and asdict(warmup),
        "labelled_share": labelled_share,
    }
    # with a cache nothing needs the teachers from here on, and training has their memory
    del teachers, models, teacher
    objective = objective.to(run.accelerator.device)
    return run.train(student, tokenizer, objective, {**tokenized, task.train_split: rows}, evaluator, records)


def calibration_batches(run, rows, tokenizer):
    """The first global batches, so that the number of processes does not matter, in pieces that fit a device."""
    size = run.config.per_device_train_batch_size
    loader = run.train_loader(rows, tokenizer, run.total_batch_size)
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for batch in islice(loader, run.config.calibration_batches)
        for start in range(0, len(batch["labels"]), size)
    ]


def warm_up(run, student, teacher, layer_map, rows, tokenizer):
    """Let every FFN of the student learn the teacher's, where the config says so. Returns: a WarmUpReport or None."""
    config = run.config
    if not config.activation_warmup_steps:
        return None
    # every process does the same on the global batches, so that their students stay equal
    loader = run.train_loader(rows, tokenizer, run.total_batch_size)
    report = warm_up_ffns_(
        student,
        teacher,
        layer_map,
        loader,
        config.activation_warmup_steps,
        learning_rate=config.learning_rate,
        activation_learning_rate=config.activation_learning_rate,
    )
    logger.info("%s", report)
    return report


def activation_settings(config):
    """The student's activation as a settings object. Raises: ConfigError if a value is not allowed."""
    try:
        if config.activation != "lma":
            return BaselineConfig(config.activation, config.num_segments)
        names = ("num_segments", "range_sigmas", "statistics", "init", "continuous", "per_channel")
        return LMAConfig(**{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_student(teacher, activation, batches, config):
    """(student, CalibrationReport of an LMA student or None)."""
    student = build_student(
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
    calibration = calibrate_(student, batches) if activation.name == "lma" else None
    logger.info("%s", calibration)
    return student, calibration
