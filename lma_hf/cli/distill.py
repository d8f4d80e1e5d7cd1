"""`lma-hf distill`: teacher -> activation surgery -> shallow student -> distilled."""

import logging
from dataclasses import asdict
from itertools import islice

from datasets import DatasetDict

from lma_hf.cli.extra_data import add_unlabelled
from lma_hf.cli.loading import load_data
from lma_hf.cli.objective import make_objective
from lma_hf.cli.quantization import prepare_quantization
from lma_hf.cli.run import TrainingRun
from lma_hf.cli.students import activation_settings, load_pretrained_student, make_student
from lma_hf.cli.teacher_cache import with_teacher_rows
from lma_hf.cli.teachers import CheckedTeacher, answering, labels_of_teacher, load_extra_teachers
from lma_hf.distillation.objective import paired_states
from lma_hf.student.layer_map import resolve_layer_map
from lma_hf.student.warmup import warm_up_ffns_

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
    tokenizer, teacher = run.load(config.teacher, "teacher", complete=True)
    student_tokenizer, pretrained = load_pretrained_student(run, teacher, tokenizer)
    layer_map = (
        []
        if pretrained
        else resolve_layer_map(config.resolved_layer_map, config.num_layers, teacher.config.num_hidden_layers)
    )
    mapping = labels_of_teacher(teacher, task, config)
    models = [(config.teacher, teacher, list(range(teacher.config.num_labels)))]
    models += load_extra_teachers(run, task, tokenizer, teacher)
    splits, labelled_share = add_unlabelled(splits, task, config)
    tokenized = run.tokenize(splits, task, tokenizer, mapping)
    # as the student reads the texts
    rows = tokenized if student_tokenizer is tokenizer else run.tokenize(splits, task, student_tokenizer, mapping)
    evaluator = run.evaluator(rows, task, student_tokenizer, mapping)
    teachers = [CheckedTeacher(run, *named, tokenizer, tokenized, task, mapping) for named in models]
    batches = calibration_batches(run, rows[task.train_split], student_tokenizer)
    student, calibration = make_student(teacher, pretrained, activation, batches, config)
    run.freeze_(student)
    warmup = warm_up(run, student, teacher, layer_map, tokenized[task.train_split], tokenizer)
    quantization = prepare_quantization(student, config, run.accelerator)
    states = paired_states(layer_map, config.weighted_parts, config.hidden_cosine_layers)
    answers, positions = answering(teachers, tokenized[task.train_split], states, config)
    if positions is not None:
        rows = DatasetDict({**rows, task.train_split: with_teacher_rows(rows[task.train_split], positions)})
    objective = make_objective(answers, teacher, student, layer_map, config, labelled_share)
    records = {
        "student": config.student_name_or_path,
        "activation": {"name": activation.name, **asdict(activation)},
        "layer_map": layer_map,
        "teacher": teachers[0].record,
        "extra_teachers": [extra.record for extra in teachers[1:]],
        "calibration": calibration and asdict(calibration),
        "activation_warmup": warmup and asdict(warmup),
        "quantization": quantization,
        "labelled_share": labelled_share,
    }
    # with a cache nothing needs the teachers from here on, and training has their memory
    del teachers, models, teacher
    objective = objective.to(run.accelerator.device)
    return run.train(student, student_tokenizer, objective, rows, evaluator, records)


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
