"""How much each batch of an optimizer step counts, so that the step's gradient is that of its rows' mean loss."""

import torch

from lma_hf.distillation.objective import Shares


def shares_of_step(batches, accelerator):
    """The `Shares` of each of this process's batches of one optimizer step, as tensors on its device.

    Every process must call this at every step; it does not wait for a GPU.
    """
    counts = torch.stack([_count(batch) for batch in batches])
    total = accelerator.reduce(counts.sum(0), reduction="sum")
    return [Shares(*row) for row in (counts * accelerator.num_processes / total.clamp_min(1)).unbind()]


def _count(batch):
    """Rows with a real token, and real tokens, as a tensor of two numbers."""
    labels, mask = batch["labels"], batch.get("attention_mask")
    if mask is None:
        # without a mask every token is real
        tokens = max(value.numel() for value in batch.values())
        return torch.tensor([len(labels), tokens], device=labels.device, dtype=torch.float32)
    real = mask != 0
    return torch.stack([real.any(-1).sum(), real.sum()]).float()
