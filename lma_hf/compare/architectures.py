"""Which transformers architectures the swap works for, tried on a tiny random model of each."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel

from lma_hf.compare.tiny_architectures import FAMILIES, Family, build
from lma_hf.errors import SurgeryError
from lma_hf.modeling.activation_lma import LMA
from lma_hf.modeling.configuration_lma import LMAConfig
from lma_hf.modeling.token_mask_lma import NO_TOKEN_MASK
from lma_hf.surgery.swap import restore_activations_, swap_activations_
from lma_hf.surgery.targets import ffn_sites


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        sites: FFN activations that were swapped, 0 where that could not be done. replaced: the class that stood there.
        gated: whether the FFN is. reason: why it could not be done, else empty.
    """

    family: str
    model_type: str
    sites: int = 0
    replaced: str = ""
    gated: bool = False
    reason: str = ""


def try_architecture(family: Family, model_type: str, folder: Path) -> Outcome:
    """Swap, run forward and backward, save into `folder`, reload, restore.

    Raises: AssertionError if one of these does not do what it must.
    """
    model, inputs = build(family, model_type), family.inputs()
    before = output_of(model, inputs)
    try:
        site = ffn_sites(model)[0]
        report = swap_activations_(model, LMAConfig(statistics="running"))
    except SurgeryError as error:
        return Outcome(family.name, model_type, reason=str(error))
    check_training(model, inputs)
    swapped = output_of(model, inputs)
    assert not torch.equal(swapped, before), "the swap changed nothing"
    model.save_pretrained(folder)
    assert torch.equal(output_of(AutoModel.from_pretrained(folder), inputs), swapped), "reloaded to another output"
    restore_activations_(model)
    assert torch.equal(output_of(model, inputs), before), "restored to another output"
    return Outcome(family.name, model_type, len(report.swapped), next(iter(report.swapped.values())), site.gated)


def check_training(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """A forward and a backward pass, in which the LMAs see the batch and get gradients."""
    _first_tensor(model.train()(**inputs)).float().square().mean().backward()
    modules = [module for module in model.modules() if isinstance(module, LMA) and module.num_batches_tracked]
    gradients = [module.slope.grad for module in modules if module.slope.grad is not None]
    assert modules, "no LMA was run in training"
    assert all(gradient.isfinite().all() for gradient in gradients), "a gradient is not finite"
    assert any(gradient.abs().sum() > 0 for gradient in gradients), "no LMA got a gradient"
    model.zero_grad()
    model.eval()


@torch.no_grad()
def output_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor of what the model answers, with the random masks of some speech and vision models fixed."""
    torch.manual_seed(0)
    return _first_tensor(model(**inputs))


def _first_tensor(output: Any) -> torch.Tensor:
    return next(value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point())


def try_all(families: Iterable[Family] = FAMILIES) -> Iterator[Outcome]:
    """The `Outcome` of every model type."""
    for family in families:
        for model_type in family.model_types:
            with tempfile.TemporaryDirectory() as folder:
                yield try_architecture(family, model_type, Path(folder))


PAGE = """# Architectures

Made by `python scripts/try_architectures.py` with transformers {version}, on a tiny random model of each type: swap
every FFN activation for LMA, forward and backward, save, reload to bit-equal outputs, restore to bit-equal outputs.
{works} of {all} model types can be swapped. The sites are found by structure (`lma_hf/surgery/targets.py`), not by
class, so others are likely to work too. DistilRoBERTa and MiniLM are of the types roberta and bert.

Statistics are those of the tokens that the model's attention mask calls real. Every position counts where a model
takes no mask, and where its mask does not say which positions the FFNs see:
{maskless}.

| family | model type | sites | replaced | gated |
|---|---|---|---|---|
{table}

## What cannot be swapped, and why

| family | model type | why |
|---|---|---|
{reasons}
"""


def architectures_page(outcomes: Iterable[Outcome]) -> str:
    """docs/architectures.md: what works, what does not and why."""
    outcomes = list(outcomes)
    works = [outcome for outcome in outcomes if outcome.sites]
    rows = [
        (each.family, each.model_type, str(each.sites), each.replaced, "yes" if each.gated else "") for each in works
    ]
    reasons = [(each.family, each.model_type, each.reason) for each in outcomes if each.reason]
    return PAGE.format(
        version=transformers.__version__,
        works=len(works),
        all=len(outcomes),
        maskless=", ".join(NO_TOKEN_MASK),
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
        reasons="\n".join(f"| {' | '.join(row)} |" for row in reasons),
    )
