"""The same training, cut differently; run as `python -m torch.distributed.run ... exactness_worker.py FOLDER`."""

import contextlib
import sys
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from datasets import Dataset
from helpers import VOCAB, tiny_config, tiny_model
from torch.utils.data import DataLoader
from transformers import BertTokenizerFast

from lma_hf import LMAConfig, build_student, calibrate_, swap_activations_, train_only_
from lma_hf.data.collate import make_dataloader
from lma_hf.distillation.attention import AttentionObjective
from lma_hf.distillation.losses import UNLABELLED
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.teacher import Teacher
from lma_hf.modeling.modeling_lma import activation_parameters, one_statistics_update
from lma_hf.training.config import TeachConfig
from lma_hf.training.prediction import predict_in_order
from lma_hf.training.trainer import Trainer

TOTAL = 32  # rows of an optimizer step
# rows of an epoch; they leave for its last step: nothing, few rows for 16 batches, one row
COUNTS = (64, 69, 65)
PREDICTED = (1, 2, 3, 4, 5, 8, 11)


def cases(num_processes):
    """(rows, mode, accumulation steps) of every training. A mode is one of LMA's statistics, or trains them alone."""
    accumulations = (1, 4) if num_processes == 1 else (1, 8)
    found = [(count, "running", steps) for count in COUNTS for steps in accumulations]
    found += [(69, mode, steps) for mode in ("frozen", "activations only") for steps in accumulations]
    # with the statistics of each batch, smaller batches are another function
    return [*found, (69, "batch", 1), (65, "batch", 1)]


class RecordingSGD(torch.optim.SGD):
    """Keeps every step's gradients. (AdamW goes by the sign of gradients that are rounding alone.)"""

    def __init__(self, modules, activation_parameters, config, fused):
        parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.gradients = []

    def step(self, closure=None):
        self.gradients += [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(5, VOCAB))]
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})


def rows(count):
    """Sentences of 3 to 30 tokens; every fifth has no label."""
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 31, (count,), generator=generator).tolist()
    ids = [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    masks = [[1] * length for length in lengths]
    labels = [sum(row) % 2 if index % 5 else UNLABELLED for index, row in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels})


def loader(count, batch_size):
    return make_dataloader(rows(count), tokenizer(), batch_size, shuffle=True, seed=1, total_batch_size=TOTAL)


def student_and_objective(mode):
    """A narrow student, whose states go through projections, with statistics that move fast."""
    set_seed(0)
    teacher = tiny_model(config=tiny_config("bert", 2))
    statistics = "running" if mode == "activations only" else mode
    settings = LMAConfig(statistics=statistics, init="fit", per_channel=True, momentum=0.3)
    student = build_student(teacher, 2, activation=None, hidden_size=8, num_attention_heads=2)
    for parameter in student.parameters():
        # large enough for the activations to matter
        if parameter.dim() == 2:
            parameter.data *= 5
    swap_activations_(student, settings)
    calibrate_(student, [next(iter(loader(TOTAL, TOTAL)))])
    if mode == "activations only":
        train_only_(student, "activations")
    widths = {"student_hidden_size": 8, "teacher_hidden_size": teacher.config.hidden_size}
    weights = {"hidden_loss_weight": 1.0, "hidden_cosine_loss_weight": 1.0, "relation_loss_weight": 1.0}
    relation = AttentionObjective(student, teacher, [0, 1], relation=True)
    layers = {"layer_map": [0, 1], "attention": relation, "labelled_share": 0.8}
    return student, DistillationObjective(Teacher(teacher), **weights, **widths, **layers)


def train(count, mode, accumulation):
    """Two epochs. Returns: everything that must not depend on the cut, and what was wrapped."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    student, objective = student_and_objective(mode)
    lines = []
    with patch("lma_hf.training.trainer.build_optimizer", RecordingSGD):
        trainer = Trainer(
            student,
            objective,
            loader(count, TOTAL // accelerator.num_processes // accumulation),
            evaluate=lambda model, step: 0.0,
            save_best=lambda: None,
            log=lambda values, step: lines.append(values),
            config=config(accumulation),
            accelerator=accelerator,
            activation_parameters=activation_parameters(student),
            around_step=partial(one_statistics_update, student),
        )
    trainer.train()
    parts = ("loss", "task_loss", "distill_loss", "hidden_loss", "hidden_cosine_loss", "relation_loss")
    names = ("step", "epoch", *parts, "learning_rate")
    return {
        "lines": torch.tensor([[line[name] for name in names] for line in lines]),
        "gradients": trainer.optimizer.optimizer.gradients,
        "weights": dict(student.state_dict()),
        "projections": dict(objective.state_dict()),
        "wrapped": [type(part).__name__ for part in (trainer.model, trainer.objective, objective.teacher.model)],
    }


def config(accumulation):
    values = {"task_name": "sst2", "output_dir": "unused", "model_name_or_path": "unused"}
    values |= {"num_train_epochs": 2, "warmup_ratio": 0.0, "logging_steps": 1, "max_grad_norm": 0.5}
    return TeachConfig(**values, gradient_accumulation_steps=accumulation)


class Echo(torch.nn.Module):
    """Logits that name the row."""

    def forward(self, value):
        return type("Output", (), {"logits": torch.stack([value, -value], dim=1)})


def predict(count):
    """Logits of `count` rows that name themselves, in batches of 2."""
    accelerator = Accelerator(cpu=True)
    data = [{"value": torch.tensor(float(row)), "labels": torch.tensor(row)} for row in range(count)]
    return predict_in_order(Echo(), accelerator.prepare(DataLoader(data, batch_size=2)), accelerator)[0]


def main(folder):
    torch.set_num_threads(1)
    world_size = Accelerator(cpu=True).num_processes
    results = {case: train(*case) for case in cases(world_size)}
    predictions = {count: predict(count) for count in PREDICTED}
    torch.save((results, predictions), f"{folder}/rank{dist.get_rank()}.pt")
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
