"""How much each batch of an optimizer step counts, so that the step's gradient is that of its rows' mean loss."""

import torch


def shares_of_step(batches, accelerator):
    """Rows of each of this process's batches of one optimizer step, over the step's mean number of rows a process.

    A loss that is a mean over a batch's rows, times this, becomes that of the whole step when it is summed over the
    step's batches and averaged over processes, however uneven these are. Every process must call this at every step;
    it does not wait for a GPU.

    Returns: tensor of shape (number of batches,), on the batches' device.
    """
    counts = torch.stack([_count_rows(batch) for batch in batches])
    total = accelerator.reduce(counts.sum(), reduction="sum")
    return counts * accelerator.num_processes / total.clamp_min(1)


def _count_rows(batch):
    """Rows with a real token."""
    labels, mask = batch["labels"], batch.get("attention_mask")
    if mask is None:
        return torch.tensor(float(len(labels)), device=labels.device)
    return (mask != 0).any(-1).sum().float()
