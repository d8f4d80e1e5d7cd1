"""torchdistill's `DistillationBox`, used as in its GLUE example (Matsubara 2021, arXiv 2011.12913)."""

from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.interfaces.registry import register_forward_proc_func
from torchdistill.datasets.registry import register_collate_func
from torchdistill.optim.registry import register_optimizer, register_scheduler
from transformers import DataCollatorWithPadding, set_seed

from lma_hf.training.optimizer import build_optimizer, build_scheduler

register_scheduler(build_scheduler)


@register_optimizer
def adamw(module, config):
    """Ours, with no decay of biases and norms."""
    return build_optimizer([module], (), config)


@register_forward_proc_func
def forward_logits(model, sample_batch, targets=None, supp_dict=None):
    """Logits of a transformers model."""
    return model(**sample_batch).logits


def train(job):
    """Train a `TrainingJob`'s student; the loop over the batches is the user's with torchdistill."""
    set_seed(job.config.seed)
    register_collate_func(DataCollatorWithPadding(job.tokenizer))
    device = job.accelerator.device
    # not as torchdistill's accelerator argument: it reads state.use_fp16, which accelerate no longer has
    student = job.accelerator.prepare_model(job.student)
    box = get_distillation_box(job.teacher, student, {"train": job.rows}, box_config(job), device, None, False, 1)
    job.clock.start()
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for batch in box.train_data_loader:
            batch = batch.to(device)
            labels = batch.pop("labels")
            box.post_forward_process(loss=box.forward_process(batch, targets=labels))
        box.post_epoch_process()
        job.clock.end_epoch(student)


def box_config(job):
    """A `TrainingJob` as a configuration of torchdistill's."""
    config = job.config
    return {
        "num_epochs": config.num_train_epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "collate_fn": "DataCollatorWithPadding",
            "requires_supp": False,
            "kwargs": {"batch_size": config.per_device_train_batch_size},
        },
        "teacher": {"forward_proc": "forward_logits", "requires_grad": False},
        "student": {"forward_proc": "forward_logits"},
        "optimizer": {
            "key": "adamw",
            "kwargs": {"config": config},
            "filters_params": False,
            "max_grad_norm": config.max_grad_norm or None,
        },
        "scheduler": {
            "key": "build_scheduler",
            "kwargs": {"num_steps": job.num_steps, "config": config},
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": loss(config)}}},
    }


def loss(config):
    """alpha * cross-entropy + beta * T^2 * KL: that of a `DistillConfig`."""
    output = {"module_path": ".", "module_io": "output"}
    kwargs = {f"{model}_{key}": value for model in ("student", "teacher") for key, value in output.items()}
    kwargs |= {"alpha": config.task_loss_weight, "beta": config.distill_loss_weight, "temperature": config.temperature}
    # where alpha is 0, KDLoss leaves out beta and T^2 too
    weight = 1.0 if config.task_loss_weight else config.distill_loss_weight * config.temperature**2
    return {"criterion": {"key": "KDLoss", "kwargs": kwargs}, "weight": weight}
