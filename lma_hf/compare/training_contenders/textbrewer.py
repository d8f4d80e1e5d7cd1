"""TextBrewer's `GeneralDistiller`, used as its documentation says (Yang et al. 2020, arXiv 2002.12620)."""

import tempfile

from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, set_seed

from lma_hf.training.optimizer import build_optimizer, build_scheduler


def train(job):
    """Train a `TrainingJob`'s student. TextBrewer saves the weights after every epoch, within the time."""
    config = job.config
    set_seed(config.seed)
    student = job.accelerator.prepare_model(job.student)
    loader = DataLoader(
        job.rows, config.per_device_train_batch_size, shuffle=True, collate_fn=DataCollatorWithPadding(job.tokenizer)
    )
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingConfig(output_dir=folder, device=job.accelerator.device)
        distiller = GeneralDistiller(training, losses(config), job.teacher, student, logits, logits_and_loss)
        with distiller:
            job.clock.start()
            distiller.train(
                build_optimizer([student], (), config),
                loader,
                num_epochs=config.num_train_epochs,
                scheduler_class=build_scheduler,
                scheduler_args={"num_steps": job.num_steps, "config": config},
                max_grad_norm=config.max_grad_norm or -1,  # its word for no clipping
                callback=lambda model, step: job.clock.end_epoch(model),
                batch_postprocessor=dict,  # a BatchEncoding would be taken for a tuple
            )


def losses(config):
    """The losses of a `DistillConfig` in TextBrewer's words.

    Its soft loss is the cross-entropy, without the factor T^2; it differs from the KL divergence by the entropy of the
    teacher, which has no gradient.
    """
    return DistillationConfig(
        temperature=config.temperature,
        kd_loss_type="ce",
        kd_loss_weight=config.distill_loss_weight * config.temperature**2,
        hard_label_weight=config.task_loss_weight,
    )


def logits(batch, output):
    """Adaptor of the teacher."""
    return {"logits": output.logits}


def logits_and_loss(batch, output):
    """Adaptor of the student; the model's own loss is that against the labels in the batch."""
    return {"logits": output.logits, "losses": output.loss}
