"""The gradient of the word embeddings by rows: a batch uses some hundreds of the table's 30,000."""

from torch import nn


class RowGradients:
    """Inside the context, backward writes the used rows of one lasting gradient in place of a whole new one.

    The optimizer sees the same numbers; rows that occur twice are added up in another order. What is saved is a tensor
    of the table's size (47 MB for 30,522 x 384) that a CPU would otherwise get from the system, fill and give
    back at every step.

    Args:
        model: the unwrapped model; where its input embeddings do not train, nothing happens.
        enabled: False does nothing, for processes that exchange gradients and for GPUs, which keep their memory.
        nan_passes: training goes on after a NaN, which clipping writes into all rows, so that all have to be cleared.
    """

    def __init__(self, model, enabled=True, nan_passes=False):
        self.nan_passes = nan_passes
        table = model.get_input_embeddings() if enabled else None
        trains = isinstance(table, nn.Embedding) and table.weight.requires_grad
        self.table, self.gradient, self.rows = table if trains else None, None, None

    def __enter__(self):
        if self.table is not None:
            self.table.sparse = True
        return self

    def __exit__(self, *exception):
        if self.table is not None:
            self.table.sparse = False

    def fill(self):
        """After the backward passes of a step: make the gradient an ordinary one."""
        sparse = None if self.table is None else self.table.weight.grad
        # a table that is also used as an output layer has a dense gradient
        if sparse is None or not sparse.is_sparse:
            return
        if self.gradient is None:
            self.gradient = self.table.weight.new_zeros(self.table.weight.shape)
        sparse = sparse.coalesce()
        self.rows = sparse.indices()[0]
        self.gradient.index_copy_(0, self.rows, sparse.values())
        self.table.weight.grad = self.gradient

    def clear(self):
        """After the optimizer's step."""
        if self.rows is None:
            return
        if self.nan_passes:
            self.gradient.zero_()
        else:
            self.gradient.index_fill_(0, self.rows, 0.0)
        self.rows = None
