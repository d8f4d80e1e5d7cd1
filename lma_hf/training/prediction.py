"""Predictions over a dataset, each row exactly once, on any number of processes."""

import torch


@torch.no_grad()
def predict(model, loader, accelerator):
    """Logits and labels of every row, in the loader's order.

    Args: loader: prepared by `accelerator`.
    Returns: (logits of shape (rows, num_labels), labels of shape (rows,)) as NumPy arrays, on every process.
    """
    was_training = model.training
    model.eval()
    logits, labels = [], []
    try:
        for batch in loader:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            with accelerator.autocast():
                output = model(**inputs).logits.float()
            # gather_for_metrics drops the rows that fill up the last batch
            gathered = accelerator.gather_for_metrics((output, batch["labels"]))
            logits.append(gathered[0].cpu())
            labels.append(gathered[1].cpu())
    finally:
        model.train(was_training)
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()
