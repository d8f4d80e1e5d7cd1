"""Predictions over a dataset, each row exactly once, on any number of processes."""

import numpy as np
import torch

from lma_hf.errors import TrainingError


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


def predict_in_order(model, loader, accelerator):
    """Logits in the order of the rows' numbers, whatever the loader's order is.

    Args: loader: as of `predict`, over rows whose label is their number, from 0 (`lma_hf.data.sources.load_texts`).
    Returns: (logits of shape (rows, num_labels), row numbers 0, 1, ...) as NumPy arrays, on every process.
    Raises: TrainingError if a row came back twice or not at all.
    """
    logits, numbers = predict(model, loader, accelerator)
    order = np.argsort(numbers)
    rows = len(loader.dataset)
    if not np.array_equal(numbers[order], np.arange(rows)):
        raise TrainingError(f"{len(set(numbers.tolist()))} of {rows} rows came back, in {len(numbers)} predictions")
    return logits[order], numbers[order]
