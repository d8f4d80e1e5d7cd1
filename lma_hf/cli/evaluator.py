"""Scores of a model on the validation splits of a task."""

from lma_hf.data.collate import make_dataloader, sort_by_length
from lma_hf.data.metrics import compute_metrics
from lma_hf.training.prediction import predict


class Evaluator:
    """Scores models on every validation split of a task, in the dataset's label order.

    Args: tokenized: splits from `tokenize_splits`. mapping: dataset label -> model label, None for regression.
    """

    def __init__(self, tokenized, task, tokenizer, mapping, config, accelerator):
        self.task, self.mapping, self.accelerator = task, mapping, accelerator
        self.loaders = {}
        for split in task.validation_splits:
            if split in tokenized:
                rows = sort_by_length(tokenized[split])
                loader = make_dataloader(rows, tokenizer, config.per_device_eval_batch_size, shuffle=False, seed=0)
                self.loaders[split] = accelerator.prepare(loader)

    def __call__(self, model):
        """Split -> metric -> value in [-1, 1]."""
        results = {}
        for split, loader in self.loaders.items():
            results[split] = self.metrics(*predict(model, loader, self.accelerator))
        return results

    def metrics(self, logits, labels):
        """Metric -> value. Args: logits: in the model's label order. labels: the dataset's."""
        if self.mapping is not None:
            logits = logits[:, self.mapping]
        return compute_metrics(self.task, logits, labels)

    def score(self, results):
        """The number that selects checkpoints: the task's best metric on its first validation split."""
        return results[self.task.validation_splits[0]][self.task.best_metric]
