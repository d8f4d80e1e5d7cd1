"""Fitting one narrow FFN to what a wide one does."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from lma_hf.modeling.configuration_lma import LMAConfig
from lma_hf.modeling.modeling_lma import activation_parameters, build_activation, place
from lma_hf.surgery.calibrate import calibrate_
from lma_hf.surgery.eval_mode import eval_mode
from lma_hf.training.optimizer import build_optimizer, build_scheduler

CALIBRATION_VECTORS = 8192
EVALUATION_ROWS = 4096


@dataclass(frozen=True)
class Recipe:
    """How a narrow FFN is trained: AdamW, whose rates go up for a while and then down to 0.

    Attributes: batch_size: tokens of a step. The others are those of `TrainConfig`; there is no weight decay, since
        the target is known.
    """

    learning_rate: float
    activation_learning_rate: float
    steps: int
    batch_size: int
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "linear"


class NarrowFFN(nn.Module):
    """down(activation(up(x))), with some of a wider FFN's units."""

    def __init__(self, up, activation, down):
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


@torch.no_grad()
def start_ffn(ffn, width, settings):
    """The most important `width` units of an `FFN` with another activation, calibrated on its training vectors.

    Whatever the activation and the seed, the weights are the same.
    """
    units = ffn.ranking[:width]
    hidden_size = ffn.train.x.shape[1]
    up, down = (nn.utils.skip_init(nn.Linear, *size) for size in ((hidden_size, width), (width, hidden_size)))
    up, down = up.to(ffn.train.x), down.to(ffn.train.x)
    up.weight.copy_(_matrix(ffn.up)[units])
    up.bias.copy_(_bias(ffn.up)[units])
    down.weight.copy_(_matrix(ffn.down)[:, units])
    down.bias.copy_(_bias(ffn.down))
    narrow = NarrowFFN(up, copy.deepcopy(ffn.activation), down)
    place(narrow, "activation", build_activation(settings, width).to(ffn.train.x))
    if isinstance(settings, LMAConfig):
        calibrate_(narrow, [{"x": ffn.train.x[:CALIBRATION_VECTORS]}])
    return narrow


def _matrix(module):
    """Weights of shape (out, in); GPT-2's Conv1D keeps them the other way round."""
    return module.weight if isinstance(module, nn.Linear) else module.weight.t()


def _bias(module):
    return module.bias if module.bias is not None else _matrix(module).new_zeros(len(_matrix(module)))


def fit_(narrow, vectors, recipe, seed):
    """Train a narrow FFN on `Vectors`, by `unexplained_share`; the seed alone decides the order of the batches."""
    optimizer = build_optimizer([narrow], activation_parameters(narrow), recipe)
    scheduler = build_scheduler(optimizer, recipe.steps, recipe)
    variance = vectors.y.var(0)
    narrow.train()
    for rows in batch_rows(len(vectors.x), recipe, seed):
        rows = rows.to(vectors.x.device)
        loss = unexplained_share(narrow(vectors.x[rows]), vectors.y[rows], variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def batch_rows(count, recipe, seed):
    """Yields the row numbers of every step's batch: passes over all rows, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        while len(left) < recipe.batch_size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        rows, left = left[: recipe.batch_size], left[recipe.batch_size :]
        yield rows


@torch.no_grad()
def error_on(narrow, vectors):
    """`unexplained_share` of a narrow FFN on `Vectors`, as a number."""
    with eval_mode(narrow):
        output = torch.cat([narrow(rows) for rows in vectors.x.split(EVALUATION_ROWS)])
    return unexplained_share(output, vectors.y, vectors.y.var(0)).item()


def unexplained_share(output, target, variance):
    """Mean over the outputs of squared error / variance: 0 if equal, 1 for the target's mean.

    Every output counts alike. Otherwise one could decide alone: in the first layer of MiniLM-L6 a single output has
    0.97 of the variance.

    Args: output, target: of shape (tokens, hidden_size). variance: of every output, of shape (hidden_size,).
    """
    return ((output - target).square() / variance.clamp_min(torch.finfo(variance.dtype).tiny)).mean()
