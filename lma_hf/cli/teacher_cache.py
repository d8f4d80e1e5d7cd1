"""`--teacher_cache`: what the teacher answers, computed once and shared by runs, seeds, activations and processes."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DataCollatorWithPadding

from lma_hf.data.collate import PAD_TO_MULTIPLE_OF
from lma_hf.distillation.cache import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, answer_batch, batches_of, fill
from lma_hf.distillation.fingerprint import (
    RowIndex,
    config_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from lma_hf.distillation.store import AnswerStore
from lma_hf.distillation.teacher import TEACHER_ROW, CachedTeacher, Teacher

FORMAT = 1  # of the files, and of how answers are computed


class TeacherCache:
    """The folder of a teacher's answers, with a subfolder for everything they depend on.

    It needs the teacher only while answers are missing; what it returns does not.

    Args: run: a `TrainingRun`. mapping: dataset label -> teacher label, None for regression.
    """

    def __init__(self, run, teacher, tokenizer, task, mapping):
        self.folder = Path(run.config.teacher_cache).expanduser()
        self.teacher, self.device = Teacher(teacher, run.accelerator.autocast), run.accelerator.device
        self.batch_tokens = CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        self.collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO_MULTIPLE_OF)
        self.num_labels, self.hidden_size = teacher.config.num_labels, getattr(teacher.config, "hidden_size", None)
        self.origin = {
            "format": FORMAT,
            "weights": weights_fingerprint(teacher),
            "config": config_fingerprint(teacher),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "columns": list(task.text_columns),
            "max_length": run.config.max_length,
            "label_map": mapping,
            "precision": run.accelerator.mixed_precision,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def answers(self, dataset, states=()):
        """What the teacher answers to a tokenized split, read or computed.

        Args: states: which hidden states are kept too, 0 being the embeddings' output.
        Returns: (CachedTeacher, position of every row of the dataset).
        """
        index = RowIndex(dataset)
        origin = {**self.origin, "rows": index.fingerprint, "states": list(states)}
        state_shape = (len(states), self.hidden_size) if states else None
        store = AnswerStore(self.folder, origin, index.lengths, self.num_labels, state_shape)
        inputs = dataset.remove_columns("labels")

        def answer(start, stop):
            batches = batches_of(start, stop, index.lengths, self.batch_tokens)
            pieces = [self._answer_batch(inputs, index.rows[low:high], states) for low, high in batches]
            return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]

        fill(store, answer)
        return CachedTeacher(store, states), index.positions

    def _answer_batch(self, inputs, rows, states):
        batch = self.collate(inputs[rows.tolist()])
        return answer_batch(self.teacher, batch.to(self.device), states)

    def scores(self, tokenized, evaluator):
        """The teacher's scores, as the evaluator would find them. Args: tokenized: its splits."""
        scores = {}
        for split in evaluator.loaders:
            cached, positions = self.answers(tokenized[split])
            logits = cached.logits[torch.from_numpy(positions)].numpy()
            scores[split] = evaluator.metrics(logits, np.asarray(tokenized[split]["labels"]))
        return scores


def with_teacher_rows(dataset, positions):
    """The split with a column that says where the cache keeps each row's answer; it survives any selection."""
    return dataset.add_column(TEACHER_ROW, positions)
