"""Calibration: statistics of real tokens, then the fit, then a report of how close the swapped model stays."""

import math
from contextlib import contextmanager
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
    Raises: SurgeryError if there is no LMA, no batch, an LMA that no real token reaches or with pre-activations that
        are not finite, or no fit for the activation that was replaced; the model then stays as it was.
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
        original, statistics = _collect_statistics(model, modules, batches)
        with _unchanged_if_failing(modules.values()):
            for fqn, module in modules.items():
                _set_statistics_(module, *statistics[fqn])
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
    """Run the original network. Returns: its outputs, and fqn -> (mean, std) of every module in `modules`."""
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
    return outputs, {fqn: _merged(fqn, collected[module]) for fqn, module in modules.items()}


def _merged(fqn, samples):
    """Mean and deviation of all samples at one LMA. Raises: SurgeryError if they are none or not finite."""
    count, mean, m2 = merge_statistics(*map(torch.stack, zip(*samples, strict=True))) if samples else (None,) * 3
    if count is None or not count.all():
        raise SurgeryError(f"no real token of the batches reaches {fqn}; give batches that do, or swap fewer sites")
    if not (mean.isfinite().all() and m2.isfinite().all()):
        raise SurgeryError(
            f"the pre-activations of {fqn} are not finite (mean {mean.mean():g}); check the weights and the inputs, "
            "or calibrate in float32"
        )
    return mean, to_std(count, m2)


def _set_statistics_(module, mean, std):
    module.running_mean.copy_(mean)
    module.running_std.copy_(std)
    # worth a full window of the moving average, into however many batches the same rows were cut
    module.num_batches_tracked.fill_(math.ceil(1 / module.settings.momentum))


@contextmanager
def _unchanged_if_failing(modules):
    """Give the modules their tensors back if what is done inside fails."""
    before = [(tensor, tensor.clone()) for module in modules for tensor in module.state_dict().values()]
    try:
        yield
    except Exception:
        for tensor, value in before:
            tensor.copy_(value)
        raise


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
