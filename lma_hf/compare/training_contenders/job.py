"""What every contender is given, and how its time is taken."""

import math
import time
from dataclasses import dataclass
from typing import Any


class EpochClock:
    """Seconds of training since `start`, without those of the evaluations at the ends of epochs.

    Args: evaluate: model -> score.
    Attributes: epochs: (seconds, score) at every epoch's end.
    """

    def __init__(self, evaluate):
        self.evaluate, self.epochs, self._seconds = evaluate, [], 0.0

    def start(self):
        """Start, or go on."""
        self._start = time.perf_counter()

    def end_epoch(self, model):
        """Evaluate the model, in whose mode nothing changes, with the clock stopped."""
        self._seconds += time.perf_counter() - self._start
        self.epochs.append((self._seconds, self.evaluate(model)))
        self.start()


@dataclass(frozen=True)
class TrainingJob:
    """One distillation, ready to start: the same for every contender.

    Attributes:
        config: a `DistillConfig`.
        teacher: frozen, in eval mode, on the device; computes in the accelerator's precision.
        student: to be trained in place; has yet to be prepared by an accelerator.
        tokenizer: of both. rows: tokenized training rows with "labels".
        accelerator: says which device and precision.
        clock: an `EpochClock`, started where the training starts and told of every epoch's end.
    """

    config: Any
    teacher: Any
    student: Any
    tokenizer: Any
    rows: Any
    accelerator: Any
    clock: EpochClock

    @property
    def num_steps(self):
        """Optimizer steps of the whole training; the last batch of an epoch may be smaller."""
        steps_per_epoch = math.ceil(len(self.rows) / self.config.per_device_train_batch_size)
        return steps_per_epoch * self.config.num_train_epochs
