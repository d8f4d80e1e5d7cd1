"""The teachers of a distillation: loaded, checked, and answering live or from the cache."""

import logging

import numpy as np

from lma_hf.cli.loading import label_names_of, labels_of_model
from lma_hf.cli.teacher_cache import TeacherCache
from lma_hf.data.labels import check_same_labels, label_mapping
from lma_hf.data.metrics import compute_metrics
from lma_hf.distillation.teacher import Teacher, TeacherEnsemble
from lma_hf.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class CheckedTeacher:
    """A teacher that knows its task. With `teacher_cache` its answers are read there.

    Attributes: name. scores: of every validation split. label_map: its label id of every label of the first teacher.

    Args: run: a `TrainingRun`. tokenized: splits. mapping: dataset label -> the first teacher's, None for regression.
    Raises: DataError if it is no better than always answering the most common class.
    """

    def __init__(self, run, name, model, label_map, tokenizer, tokenized, task, mapping):
        self.name, self.label_map = name, label_map
        its_mapping = mapping and [label_map[label] for label in mapping]
        evaluator = run.evaluator(tokenized, task, tokenizer, its_mapping)
        self.live = Teacher(model, run.accelerator.autocast)
        self.cache = TeacherCache(run, model, tokenizer, task, its_mapping) if run.config.teacher_cache else None
        self.scores = self.cache.scores(tokenized, evaluator) if self.cache else evaluator(model)
        check_scores(self.scores, evaluator, tokenized, run.config, name)

    @property
    def record(self):
        """What results.json says of it."""
        return {"name": self.name, "metrics": self.scores}


def answering(teachers, rows, states, config):
    """One teacher for all of them.

    Args: teachers: `CheckedTeacher`s. rows: a tokenized split. states: which hidden states of the first are needed.
    Returns: (`Teacher`, `CachedTeacher` or `TeacherEnsemble`, where the cache keeps the answer of every row or None).
    """
    answers, positions = [teacher.live for teacher in teachers], None
    if config.teacher_cache:
        wanted = [sorted(set(states)), *[()] * (len(teachers) - 1)]
        answers = [teacher.cache.answers(rows, its) for teacher, its in zip(teachers, wanted, strict=True)]
        # where a row's answer stands depends on the rows alone
        positions = answers[0][1]
        answers = [cached for cached, _ in answers]
    if len(answers) == 1:
        return answers[0], positions
    label_maps = [teacher.label_map for teacher in teachers]
    weights = config.resolved_teacher_weights
    return TeacherEnsemble(answers, label_maps, average=config.teacher_average, weights=weights), positions


def load_extra_teachers(run, task, tokenizer, first):
    """The config's extra teachers as (name, model, its label id of every label of the first teacher).

    Raises: ConfigError if one was trained with another tokenizer, LabelMismatchError if one has other labels.
    """
    found = []
    for number, name in enumerate(run.config.extra_teachers, start=1):
        its_tokenizer, model = run.load(name, f"extra teacher {number}", complete=True)
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(f"extra teacher {name!r} has another vocabulary than {run.config.teacher!r}; drop it")
        if its_tokenizer.model_input_names != tokenizer.model_input_names:
            raise ConfigError(
                f"extra teacher {name!r} takes {', '.join(its_tokenizer.model_input_names)} and "
                f"{run.config.teacher!r} {', '.join(tokenizer.model_input_names)}; teachers must take the same"
            )
        found.append((name, model, _label_map(first, model, name, task, run.config)))
    return found


def _label_map(first, model, name, task, config):
    if task.is_regression:
        labels_of_model(model, task, config.dataset, name)  # raises if it has classes
        return [0]
    # the names are the first teacher's, not a dataset's, which the message says
    return label_mapping(label_names_of(first), label_names_of(model), dataset=config.teacher, model=name)


def labels_of_teacher(teacher, task, config):
    """Dataset label -> teacher label, None for regression; the student inherits the teacher's labels."""
    if not task.is_regression:
        # the student inherits the teacher's names, in their order
        names = label_names_of(teacher)
        check_same_labels(task.label_names, names, names)
    return labels_of_model(teacher, task, config.dataset, config.teacher)


def check_scores(scores, evaluator, tokenized, config, name):
    """Raises: DataError if a teacher is no better than always answering the most common class.

    Such a teacher is usually one whose labels are swapped, or one that was trained for another task.
    """
    task, split = evaluator.task, evaluator.task.validation_splits[0]
    # accuracy where there is one: always answering the negative class has an F1 of 0
    metric = "accuracy" if "accuracy" in task.metrics else task.best_metric
    score = scores[split][metric]
    floor = 0.0 if task.is_regression else majority_scores(task, np.asarray(tokenized[split]["labels"]))[metric]
    if score <= floor:
        message = (
            f"teacher {name} reaches {metric} {score:.4f} on {split}, no better than the {floor:.4f} of always "
            "answering the most common class"
        )
        if not config.allow_weak_teacher:
            raise DataError(f"{message}; check its labels and task, or pass --allow_weak_teacher true")
        logger.warning("%s; going on as allow_weak_teacher is set", message)


def majority_scores(task, labels):
    """The task's metrics for always answering the most common class."""
    counts = np.bincount(labels, minlength=task.num_labels)
    constant = np.tile(counts == counts.max(), (len(labels), 1)).astype(np.float32)
    return compute_metrics(task, constant, labels)
