"""What one would write without lma_hf: `transformers.Trainer` with the distillation loss in `compute_loss`."""

import tempfile
import time

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from lma_hf.distillation.losses import knowledge_distillation_loss, task_loss


class DistillationTrainer(Trainer):
    """The teacher runs on every batch. Args: teacher: a frozen model in eval mode. config: a `DistillConfig`."""

    def __init__(self, *, teacher, config, **arguments):
        super().__init__(**arguments)
        self.teacher, self.distill_config = teacher.eval(), config

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of `DistillationObjective` without hidden states."""
        labels, config = inputs.pop("labels"), self.distill_config
        output = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        soft = knowledge_distillation_loss(output.logits, teacher_logits, config.temperature)
        loss = config.task_loss_weight * task_loss(output.logits, labels) + config.distill_loss_weight * soft
        return (loss, output) if return_outputs else loss


def train_plainly(teacher, student, tokenizer, train, config):
    """Train the student in place, with the optimizer settings of a `DistillConfig`.

    Args: train: tokenized rows with "labels".
    Returns: seconds of the training.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=config.num_train_epochs,
            per_device_train_batch_size=config.per_device_train_batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_ratio,
            max_grad_norm=config.max_grad_norm,
            bf16=config.mixed_precision == "bf16",
            seed=config.seed,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = DistillationTrainer(
            teacher=teacher.to(arguments.device),
            config=config,
            model=student,
            args=arguments,
            train_dataset=train,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start
