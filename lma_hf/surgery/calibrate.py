"""Calibration: statistics of real tokens, then the fit, then a report of how close the swapped model stays."""

import math
from dataclasses import dataclass

import torch

from lma_hf.errors import SurgeryError
from lma_hf.modeling.activation_lma import LMA
from lma_hf.modeling.statistics_lma import merge_statistics, to_std, token_statistics
from lma_hf.surgery.eval_mode import eval_mode
from lma_hf.surgery.fit import check_fit, fit_to_replaced_


@dataclass(frozen=True)
class CalibrationReport:
    """How close the calibrated model is to the model with the activations that were replaced, on the batches given.

    Attributes:
        num_modules: LMA modules that were calibrated. num_batches: batches that were used.
        max_logit_difference, mean_logit_difference: absolute differences over all rows and outputs.
        label_agreement: share of rows with the same argmax, in [0, 1]; None for models without several outputs.
    """

    num_modules: int
    num_batches: int
    max_logit_difference: float
    mean_logit_difference: float
    label_agreement: float | None

    def __str__(self):
        agreement = "" if self.label_agreement is None else f", same label on {self.label_agreement:.2%} of rows"
        return (
            f"calibrated {self.num_modules} LMA modules on {self.num_batches} batches: logits differ by "
            f"{self.mean_logit_difference:.4f} on average, {self.max_logit_difference:.4f} at most{agreement}"
        )


@torch.no_grad()
def calibrate_(model, batches):
    """Set the running statistics of every LMA in `model` from real tokens; with init="fit", fit the pieces too.

    The statistics are those of the original network: while they are taken, every LMA answers with the activation
    it replaced. They are exact over all batches, so order and batch size do not matter. Meant for a freshly swapped
    model: a fit replaces what an LMA has learned.

    Args:
        batches: an iterable of model inputs (dicts of tensors); labels are ignored.
    Returns: CalibrationReport.
    Raises: SurgeryError if there is no LMA, no batch, or no fit for the activation that was replaced.
    """
    modules = {fqn: module for fqn, module in model.named_modules() if isinstance(module, LMA)}
    if not modules:
        raise SurgeryError(f"{type(model).__name__} holds no LMA; call swap_activations_ first")
    batches = [_to_inputs(batch, model) for batch in batches]
    if not batches:
        raise SurgeryError("calibrate_ got no batches; give at least one")
    for fqn, module in modules.items():
        if module.settings.init == "fit":
            check_fit(module, fqn)
    with eval_mode(model):
        original = _collect_statistics(model, modules, batches)
        for fqn, module in modules.items():
            if module.settings.init == "fit":
                fit_to_replaced_(module, fqn)
            elif module.settings.continuous:
                module.height.copy_(module.relu_heights())
        swapped = [_output_of(model, batch) for batch in batches]
    return _report(len(modules), original, swapped)


def _to_inputs(batch, model):
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items() if key not in ("labels", "label")}


def _output_of(model, batch):
    """The model's logits (or first output): one row a sentence, or a real token where it answers for each token."""
    output = model(**batch)
    if not isinstance(output, torch.Tensor):
        output = output.logits if hasattr(output, "logits") else output[0]
    if output.dim() == 3:
        mask = batch.get("attention_mask")
        output = output.flatten(0, 1) if mask is None else output[mask != 0]
    return output.float()


def _collect_statistics(model, modules, batches):
    """Run the original network, set every module's running statistics, and return the original outputs."""
    collected = {module: [] for module in modules.values()}

    def observe(module, args, output):
        mask = module.token_mask.value if module.token_mask is not None else None
        collected[module].append(token_statistics(args[0], mask, module.settings.per_channel))
        return module.__dict__["replaced"](args[0]) if "replaced" in module.__dict__ else output

    handles = [module.register_forward_hook(observe) for module in modules.values()]
    try:
        outputs = [_output_of(model, batch) for batch in batches]
    finally:
        for handle in handles:
            handle.remove()
    for module, samples in collected.items():
        count, mean, m2 = merge_statistics(*(torch.stack(part) for part in zip(*samples, strict=True)))
        module.running_mean.copy_(mean)
        module.running_std.copy_(to_std(count, m2))
        # worth a full window of the moving average, into however many batches the same rows were cut
        module.num_batches_tracked.fill_(math.ceil(1 / module.settings.momentum))
    return outputs


def _report(num_modules, original, swapped):
    differences = [(a - b).abs() for a, b in zip(original, swapped, strict=True)]
    elements = sum(difference.numel() for difference in differences)
    agreement = None
    if original[0].dim() == 2 and original[0].shape[-1] > 1:
        same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(original, swapped, strict=True)]
        agreement = torch.cat(same).mean().item()
    return CalibrationReport(
        num_modules,
        len(original),
        max(difference.max().item() for difference in differences),
        sum(difference.sum().item() for difference in differences) / elements,
        agreement,
    )
