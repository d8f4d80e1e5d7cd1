"""What one would write without lma_hf: `transformers.Trainer` with the distillation loss in `compute_loss`."""

import tempfile

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from lma_hf.distillation.losses import knowledge_distillation_loss, task_loss


class DistillationTrainer(Trainer):
    """The teacher runs on every batch. Args: teacher: frozen, in eval mode. config: a `DistillConfig`."""

    def __init__(self, *, teacher, config, **arguments):
        super().__init__(**arguments)
        self.teacher, self.distill_config = teacher, config

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of `DistillationObjective` without hidden states."""
        labels, config = inputs.pop("labels"), self.distill_config
        output = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        soft = knowledge_distillation_loss(output.logits, teacher_logits, config.temperature)
        loss = config.task_loss_weight * task_loss(output.logits, labels) + config.distill_loss_weight * soft
        return (loss, output) if return_outputs else loss


class ClockCallback(TrainerCallback):
    """Starts an `EpochClock` and tells it of the epochs."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.start()

    def on_epoch_end(self, args, state, control, model, **kwargs):
        self.clock.end_epoch(model)


def train(job, train_sampling_strategy="random"):
    """Train with the optimizer settings of the job's config. Args: train_sampling_strategy: as of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        DistillationTrainer(
            teacher=job.teacher,
            config=job.config,
            model=job.student,
            args=training_arguments(job, folder, train_sampling_strategy),
            train_dataset=job.rows,
            data_collator=DataCollatorWithPadding(job.tokenizer),
            callbacks=[ClockCallback(job.clock)],
        ).train()


def training_arguments(job, output_dir, train_sampling_strategy):
    """A job's `DistillConfig` in transformers' words; AdamW is transformers' default, fused as ours."""
    config = job.config
    return TrainingArguments(
        output_dir,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        train_sampling_strategy=train_sampling_strategy,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=job.accelerator.mixed_precision == "bf16",
        seed=config.seed,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
