"""`lma-hf distill`: teacher -> activation surgery -> shallow student -> distilled."""

import logging
from dataclasses import asdict
from itertools import islice

import numpy as np

from lma_hf.cli.loading import label_names_of, labels_of_model, load_data
from lma_hf.cli.run import TrainingRun
from lma_hf.cli.teacher_cache import TeacherCache, states_of, with_teacher_rows
from lma_hf.data.labels import check_same_labels
from lma_hf.data.metrics import compute_metrics
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.teacher import Teacher
from lma_hf.errors import ConfigError, DataError
from lma_hf.modeling.configuration_lma import BaselineConfig, LMAConfig
from lma_hf.student.build import build_student
from lma_hf.student.layer_map import resolve_layer_map
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
    splits, task = load_data(config, with_train=True)
    tokenizer, teacher = run.load(config.teacher, "teacher")
    layer_map = resolve_layer_map(config.resolved_layer_map, config.num_layers, teacher.config.num_hidden_layers)
    mapping = labels_of_teacher(teacher, task, config)
    tokenized = run.tokenize(splits, task, tokenizer, mapping)
    evaluator = run.evaluator(tokenized, task, tokenizer, mapping)
    cache = TeacherCache(run, teacher, tokenizer, task, mapping) if config.teacher_cache else None
    teacher_scores = cache.scores(tokenized, evaluator) if cache else evaluator(teacher)
    check_teacher(teacher_scores, evaluator, tokenized, config)
    batches = calibration_batches(run, tokenized[task.train_split], tokenizer)
    student, calibration = make_student(teacher, activation, batches, config)
    answers = Teacher(teacher, run.accelerator.autocast)
    if cache:
        answers, tokenized = cached_answers(cache, tokenized, task, layer_map, config)
    objective = make_objective(answers, student, layer_map, teacher.config.hidden_size, config, run.accelerator)
    # with a cache nothing needs the teacher from here on, and training has its memory
    del cache, teacher
    records = {
        "activation": {"name": activation.name, **asdict(activation)},
        "layer_map": layer_map,
        "teacher": {"name": config.teacher, "metrics": teacher_scores},
        "calibration": calibration and asdict(calibration),
    }
    return run.train(student, tokenizer, objective, tokenized, evaluator, records)


def calibration_batches(run, rows, tokenizer):
    """The first global batches, so that the number of processes does not matter, in pieces that fit a device."""
    size = run.config.per_device_train_batch_size
    loader = run.train_loader(rows, tokenizer, run.total_batch_size)
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for batch in islice(loader, run.config.calibration_batches)
        for start in range(0, len(batch["labels"]), size)
    ]


def activation_settings(config):
    """The student's activation as a settings object. Raises: ConfigError if a value is not allowed."""
    try:
        if config.activation != "lma":
            return BaselineConfig(config.activation, config.num_segments)
        names = ("num_segments", "range_sigmas", "statistics", "init", "continuous", "per_channel")
        return LMAConfig(**{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def labels_of_teacher(teacher, task, config):
    """Dataset label -> teacher label, None for regression; the student inherits the teacher's labels."""
    if not task.is_regression:
        # the student inherits the teacher's names, in their order
        names = label_names_of(teacher)
        check_same_labels(task.label_names, names, names)
    return labels_of_model(teacher, task, config.dataset, config.teacher)


def cached_answers(cache, tokenized, task, layer_map, config):
    """(CachedTeacher, splits whose training rows say where their answers are)."""
    train = tokenized[task.train_split]
    answers, positions = cache.answers(train, states_of(layer_map) if config.hidden_loss_weight else ())
    return answers, {**tokenized, task.train_split: with_teacher_rows(train, positions)}


def check_teacher(scores, evaluator, tokenized, config):
    """Raises: DataError if the teacher is no better than always answering the most common class.

    Such a teacher is usually one whose labels are swapped, or one that was trained for another task.
    """
    task, split = evaluator.task, evaluator.task.validation_splits[0]
    # accuracy where there is one: always answering the negative class has an F1 of 0
    metric = "accuracy" if "accuracy" in task.metrics else task.best_metric
    score = scores[split][metric]
    floor = 0.0 if task.is_regression else majority_scores(task, np.asarray(tokenized[split]["labels"]))[metric]
    if score <= floor:
        message = (
            f"teacher {config.teacher} reaches {metric} {score:.4f} on {split}, no better than the {floor:.4f} of "
            "always answering the most common class"
        )
        if not config.allow_weak_teacher:
            raise DataError(f"{message}; check its labels and task, or pass --allow_weak_teacher true")
        logger.warning("%s; going on as allow_weak_teacher is set", message)


def majority_scores(task, labels):
    """The task's metrics for always answering the most common class."""
    counts = np.bincount(labels, minlength=task.num_labels)
    constant = np.tile(counts == counts.max(), (len(labels), 1)).astype(np.float32)
    return compute_metrics(task, constant, labels)


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


def make_objective(answers, student, layer_map, teacher_hidden_size, config, accelerator):
    """The `DistillationObjective` that the config describes, on this process's device."""
    return DistillationObjective(
        answers,
        temperature=config.temperature,
        task_loss_weight=config.task_loss_weight,
        distill_loss_weight=config.distill_loss_weight,
        hidden_loss_weight=config.hidden_loss_weight,
        layer_map=layer_map,
        student_hidden_size=student.config.hidden_size,
        teacher_hidden_size=teacher_hidden_size,
    ).to(accelerator.device)
