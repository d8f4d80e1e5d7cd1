"""Keeping a teacher's most important FFN units when the student's FFN is narrower."""

import torch
from transformers.pytorch_utils import Conv1D

from lma_hf.surgery.eval_mode import eval_mode
from lma_hf.surgery.targets import ffn_sites


@torch.no_grad()
def unit_importance(model, batches):
    """Mean absolute contribution of every FFN unit to its layer's output, over the real tokens of `batches`.

    Unit j adds a[j] * W[:, j] to the output; the score is the mean of |a[j]| over tokens times the mean of |W[:, j]|
    over outputs.

    Args: model: a transformers model. batches: dicts of inputs with an attention_mask.
    Returns: fqn of the FFN's activation (relative to the base model) -> tensor of shape (intermediate_size,).
    """
    totals, handles, mask = {}, [], None
    for site in ffn_sites(model):
        down = model.base_model.get_submodule(site.down)

        def observe(module, args, name=site.activation):
            used = args[0] if mask is None else args[0][mask]
            # GPT-2's maps keep their weights the other way round
            outputs = 1 if isinstance(module, Conv1D) else 0
            score = used.abs().flatten(0, -2).sum(0) * module.weight.abs().mean(outputs)
            totals[name] = totals.get(name, 0) + score

        handles.append(down.register_forward_pre_hook(observe))
    tokens = 0
    try:
        with eval_mode(model):
            for batch in batches:
                inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
                mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
                tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
                model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(tokens, 1) for name, total in totals.items()}


def keep_units(importance, width):
    """Indices of the `width` most important units, in their old order."""
    return importance.topk(width).indices.sort().values
