"""Layer-wise warm-up: before distillation, every FFN of the student learns what the teacher's FFN does."""

from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch

from lma_hf.errors import StudentError
from lma_hf.modeling.modeling_lma import activation_parameters
from lma_hf.surgery.eval_mode import eval_mode
from lma_hf.surgery.targets import ffn_sites


@dataclass(frozen=True)
class WarmUpReport:
    """How far the student's FFNs are from the teacher's: `relative_error` of every layer, on the first batch.

    Attributes: num_steps: batches learned from. error_before, error_after: one number a layer.
    """

    num_steps: int
    error_before: list[float]
    error_after: list[float]

    def __str__(self):
        before, after = (" ".join(f"{value:.4f}" for value in side) for side in (self.error_before, self.error_after))
        return f"warmed up {len(self.error_before)} FFNs in {self.num_steps} steps: relative error {before} -> {after}"


def warm_up_ffns_(student, teacher, layer_map, loader, num_steps, *, learning_rate, activation_learning_rate):
    """Fit every FFN of the student, weights and activation, to the teacher's FFN on the teacher's own inputs.

    Layers learn side by side: each sees what the teacher's layer sees, whatever the layers below have learned so far
    (hint training, FitNets, Romero et al. 2015, section 2.2, layer by layer). Padding is left out. What is frozen
    stays as it is.

    Args:
        layer_map: teacher layer (0-based) of every student layer.
        loader: yields dicts of model inputs; it is gone through as often as `num_steps` needs.
        learning_rate, activation_learning_rate: of AdamW, going down linearly to 0.
    Returns: WarmUpReport.
    Raises: StudentError if the FFNs cannot be compared.
    """
    ours, theirs = _paired_sites(student, teacher, layer_map)
    ffns = [[student.base_model.get_submodule(fqn) for fqn in (site.up, site.activation, site.down)] for site in ours]
    optimizer, scheduler = _optimizer(ffns, student, num_steps, learning_rate, activation_learning_rate)
    first = None
    student.train()
    for batch in islice(chain.from_iterable(repeat(loader)), num_steps):
        examples = teacher_examples(teacher, theirs, batch)
        if first is None:
            first = examples, _errors(student, ffns, examples)
        loss = sum(relative_error(_run(ffn, x), y) for ffn, (x, y) in zip(ffns, examples, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()
    after = _errors(student, ffns, first[0])
    student.eval()
    return WarmUpReport(num_steps, first[1], after)


def relative_error(output, target):
    """Mean squared error over the target's variance: 0 if equal, 1 for the target's mean.

    Args: both of shape (tokens, hidden_size). Returns: scalar.
    """
    variance = (target - target.mean(0)).square().mean()
    return (output - target).square().mean() / variance.clamp_min(torch.finfo(target.dtype).tiny)


@torch.no_grad()
def teacher_examples(teacher, sites, batch):
    """(input, output) of the teacher's FFN at each of `sites`: real tokens only, each of shape (tokens, hidden_size).

    Args: sites: `FFNSite`s of the teacher. batch: model inputs; labels are ignored.
    """
    inputs = {key: value.to(teacher.device) for key, value in batch.items() if key != "labels"}
    heard, handles = {}, []
    for site in sites:
        up, down = (teacher.base_model.get_submodule(fqn) for fqn in (site.up, site.down))
        handles.append(up.register_forward_pre_hook(lambda _, args, fqn=site.up: heard.update({fqn: args[0]})))
        handles.append(down.register_forward_hook(lambda _, args, out, fqn=site.down: heard.update({fqn: out})))
    try:
        with eval_mode(teacher):
            teacher(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) != 0
    return [(heard[site.up][mask], heard[site.down][mask]) for site in sites]


def _paired_sites(student, teacher, layer_map):
    ours, theirs = ffn_sites(student), ffn_sites(teacher)
    depths = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    if (len(ours), len(theirs)) != depths or any(site.gated for site in (*ours, *theirs)):
        raise StudentError(
            f"{type(teacher).__name__} has gated FFNs, or not one FFN in each layer; the warm-up of activations needs "
            "one plain FFN a layer"
        )
    if student.config.hidden_size != teacher.config.hidden_size:
        raise StudentError(
            f"hidden_size is {student.config.hidden_size} and the teacher's {teacher.config.hidden_size}; the warm-up "
            "of activations needs the same width, drop hidden_size"
        )
    return ours, [theirs[layer] for layer in layer_map]


def _optimizer(ffns, student, num_steps, learning_rate, activation_learning_rate):
    learnable = [parameter for parameter in activation_parameters(student) if parameter.requires_grad]
    ids = {id(parameter) for parameter in learnable}
    trained = [p for ffn in ffns for module in ffn for p in module.parameters() if p.requires_grad]
    weights = [parameter for parameter in trained if id(parameter) not in ids]
    groups = [{"params": weights, "lr": learning_rate}, {"params": learnable, "lr": activation_learning_rate}]
    # no decay: the target is known, there is nothing to regularise
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)


def _run(ffn, x):
    for module in ffn:
        x = module(x)
    return x


@torch.no_grad()
def _errors(student, ffns, examples):
    # in eval mode, so that looking moves no statistics
    with eval_mode(student):
        return [relative_error(_run(ffn, x), y).item() for ffn, (x, y) in zip(ffns, examples, strict=True)]
