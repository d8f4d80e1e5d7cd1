"""One run of the benchmark of training, in the process that it is called in: ours, or another contender."""

import tempfile
import time
from dataclasses import fields
from unittest import mock

import lma_hf.cli.distill as distill_command
import lma_hf.cli.run as run_module
from lma_hf.cli.accelerator import make_accelerator
from lma_hf.cli.evaluator import Evaluator
from lma_hf.cli.loading import labels_of_model, load_data, load_tokenizer_and_model
from lma_hf.compare.training_contenders import load_contender
from lma_hf.compare.training_contenders.job import EpochClock, TrainingJob
from lma_hf.compare.training_table import figures_of
from lma_hf.data.collate import tokenize_splits
from lma_hf.data.labels import align_labels
from lma_hf.student.build import build_student
from lma_hf.training.config import DistillConfig
from lma_hf.training.trainer import Trainer


def run_other(name, config):
    """Distil with a contender of `lma_hf.compare.training_contenders`. Returns: its `figures_of`."""
    train = load_contender(name)
    job = make_job(config)
    train(job)
    return figures_of(len(job.rows) * config.num_train_epochs, job.clock.epochs)


def make_job(config):
    """The `TrainingJob` of a `DistillConfig`, with the student that `lma-hf distill` would train."""
    splits, task = load_data(config, with_train=True)
    tokenizer, teacher = load_tokenizer_and_model(config.teacher, "teacher")
    mapping = labels_of_model(teacher, task, config.dataset, config.teacher)
    tokenized = tokenize_splits(splits, task, tokenizer, config.max_length)
    labels = align_labels(splits[task.train_split].select_columns(["label"]), mapping)["label"][:]
    accelerator = make_accelerator(config)
    evaluator = Evaluator(tokenized, task, tokenizer, mapping, config, accelerator)
    # before autocast is wrapped around the teacher
    student = build_student(teacher, config.num_layers, config.resolved_layer_map, config.activation)
    return TrainingJob(
        config=config,
        teacher=accelerator.prepare_model(teacher.eval().requires_grad_(False), evaluation_mode=True),
        student=student,
        tokenizer=tokenizer,
        rows=tokenized[task.train_split].remove_columns("labels").add_column("labels", labels),
        accelerator=accelerator,
        clock=EpochClock(lambda model: evaluator.score(evaluator(model))),
    )


def run_ours(config, options):
    """`lma-hf distill`; computing or reading the teacher's answers counts as training.

    Args: options: those that the run has beside those of all contenders.
    Returns: its `figures_of`.
    """
    watch = Watch()
    # a DistillConfig, since the benchmark's own refuses what not every contender can do
    common = {field.name: getattr(config, field.name) for field in fields(DistillConfig)}
    own = {
        "teacher_cache": config.teacher_cache if "teacher_cache" in options else None,
        "tokens_per_batch": config.tokens_per_batch if "tokens_per_batch" in options else None,
        "freeze_embeddings": "freeze_embeddings" in options,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(run_module, "Trainer", watch.trainer),
        mock.patch.object(distill_command, "answering", watch.answering),
    ):
        distill_command.distill(DistillConfig(**common | own | {"output_dir": folder}))
    return figures_of(watch.examples, watch.epochs)


class Watch:
    """Takes the times of `lma-hf distill` by standing in for two of its parts.

    Attributes: epochs: (seconds, score) at every epoch's end. examples: that training has seen.
    """

    def __init__(self):
        self.epochs, self.examples, self._seconds_of_answers = [], 0, 0.0
        self._answering = distill_command.answering

    def answering(self, *arguments):
        """In place of `lma_hf.cli.teachers.answering`."""
        start = time.perf_counter()
        answers = self._answering(*arguments)
        self._seconds_of_answers = time.perf_counter() - start
        return answers

    def trainer(self, *arguments, evaluate, **named):
        """In place of `lma_hf.training.trainer.Trainer`."""

        def noted(model, step):
            score = evaluate(model, step)
            self.epochs.append((self._seconds_of_answers + trainer.seconds, score))
            self.examples = trainer.examples
            return score

        trainer = Trainer(*arguments, evaluate=noted, **named)
        return trainer
