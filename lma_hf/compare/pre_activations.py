"""What reaches the activations of a model, and how far training moved their pieces."""

import copy
import math
from collections.abc import Iterable, Mapping

import torch
from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.glue import hub_configuration, resolve_task
from lma_hf.data.sources import load_texts
from lma_hf.hub.curves import learned_activations, sample_curve
from lma_hf.modeling.activation_lma import LMA
from lma_hf.surgery.eval_mode import eval_mode
from lma_hf.surgery.fit import fit_to_replaced_
from lma_hf.training.config import DataConfig

NUM_BINS, NUM_ROWS = 120, 256
Batch = Mapping[str, torch.Tensor]
Density = tuple[torch.Tensor, torch.Tensor]


def text_batches(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Iterable[Batch] | None:
    """Batches of the first 256 rows of the (first) validation split of a run; None where it has no such split.

    Raises: DataError where the data cannot be read.
    """
    task = resolve_task(config)
    rows = load_texts(config.dataset, task, task.validation_splits[0], dataset_config=hub_configuration(config))
    if rows is None:
        return None
    rows = rows.select(range(min(NUM_ROWS, len(rows))))
    tokenized = sort_by_length(tokenize_splits(DatasetDict(rows=rows), task, tokenizer, config.max_length)["rows"])
    return make_dataloader(tokenized, tokenizer, config.per_device_eval_batch_size, shuffle=False, seed=0)


@torch.no_grad()
def measured_densities(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, Density]:
    """Histograms of what real tokens send into every learned activation, all units together.

    Returns: fqn -> (middles of the bins, density), over the range that `activation_figure` shows.
    """
    modules = learned_activations(model)
    edges = {fqn: torch.linspace(*_range(module), NUM_BINS + 1) for fqn, module in modules.items()}
    counts = {fqn: torch.zeros(NUM_BINS + 2) for fqn in modules}
    mask = None

    def observer(fqn):
        def observe(module, args):
            values = args[0][mask].float().flatten()
            counts[fqn] += torch.bincount(torch.bucketize(values, edges[fqn]), minlength=NUM_BINS + 2)

        return observe

    handles = [module.register_forward_pre_hook(observer(fqn)) for fqn, module in modules.items()]
    try:
        with eval_mode(model):
            for batch in batches:
                mask = batch["attention_mask"] != 0
                model(**{key: value for key, value in batch.items() if key != "labels"})
    finally:
        for handle in handles:
            handle.remove()
    return {fqn: _to_density(edges[fqn], counts[fqn]) for fqn in modules}


def normal_densities(model: PreTrainedModel) -> dict[str, Density]:
    """The normal density by the running statistics of every LMA; the mean over units that have their own."""
    densities = {}
    for fqn, module in learned_activations(model).items():
        if isinstance(module, LMA):
            x = torch.linspace(*_range(module), NUM_BINS)
            mean, std = module.running_mean.reshape(-1, 1), module.running_std.reshape(-1, 1).clamp_min(1e-6)
            z = (x - mean) / std
            densities[fqn] = x, (torch.exp(-0.5 * z * z) / (std * math.sqrt(2 * math.pi))).mean(0)
    return densities


def _range(module: nn.Module) -> tuple[float, float]:
    x, _ = sample_curve(module, 2)
    return float(x[0]), float(x[-1])


def _to_density(edges: torch.Tensor, counts: torch.Tensor) -> Density:
    """Counts with those below and above the edges at the ends; they belong to the total."""
    return (edges[1:] + edges[:-1]) / 2, counts[1:-1] / counts.sum() / edges.diff()


@torch.no_grad()
def segment_movements(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """How far the output over each segment of every LMA is from its start, as a root mean square.

    The start is the one that calibration makes on the segments as they are now: a run keeps no copy of its own. The
    mean over a segment is uniform in x.

    Returns: fqn -> of shape (units, k), in units of the output; a single unit where all share the pieces.
    """
    modules = learned_activations(model).items()
    return {fqn: _movement(module, _start_of(module, fqn)) for fqn, module in modules if isinstance(module, LMA)}


def _start_of(module: LMA, fqn: str) -> LMA:
    start = copy.deepcopy(module)
    if module.settings.init == "fit":
        fit_to_replaced_(start, fqn)
        return start
    start.reset_parameters()
    for name, buffer in start.named_buffers():
        buffer.copy_(module.get_buffer(name))
    if module.settings.continuous:
        start.height.copy_(start.relu_heights())
    return start


def _movement(module: LMA, start: LMA) -> torch.Tensor:
    lower, step = module.bounds(module.running_mean, module.running_std)
    pieces = zip(module.lines(lower, step), start.lines(lower, step), strict=True)
    slope, intercept = (torch.atleast_2d(mine - theirs) for mine, theirs in pieces)
    lower, step = lower.reshape(-1, 1), step.reshape(-1, 1)
    middle = lower + step * (torch.arange(slope.shape[1]) + 0.5)
    # the difference of two lines is a line; its mean square is that at the middle plus that of its slope
    return ((slope * middle + intercept).square() + (slope * step).square() / 12).sqrt()
