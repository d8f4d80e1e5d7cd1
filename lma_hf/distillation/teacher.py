"""The frozen teacher, live or read from a cache."""

from contextlib import nullcontext

import torch

# the column of a batch that says where a cache keeps the row's answer
TEACHER_ROW = "teacher_row"


def model_inputs(batch):
    """What of a batch a model takes: all but labels and row numbers."""
    return {key: value for key, value in batch.items() if key not in ("labels", TEACHER_ROW)}


class Teacher:
    """A frozen model that answers with logits and, on request, hidden states.

    It is never wrapped for distributed training: every process holds its own copy and no gradient is kept.

    Args:
        model: a transformers model; put into eval mode, its parameters frozen.
        autocast: makes the context for mixed precision, such as `accelerator.autocast`.
    """

    def __init__(self, model, autocast=nullcontext):
        self.model = model.eval().requires_grad_(False)
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, batch, hidden_states=False):
        """Logits in float32 and the tuple of hidden states (embeddings first), or None."""
        with self.autocast():
            output = self.model(**model_inputs(batch), output_hidden_states=hidden_states)
        states = output.hidden_states if hidden_states else None
        return output.logits.float(), states


class CachedTeacher:
    """Stands in for a `Teacher`: its answers are read from a store and no model is in memory.

    The student's own token ids do not matter, except that hidden states are paired token by token.

    Args: store: a filled `AnswerStore`. states: which hidden states it holds.
    """

    def __init__(self, store, states=()):
        self.store, self.states = store, tuple(states)
        self.logits = torch.from_numpy(store.logits.items)

    def __call__(self, batch, hidden_states=False):
        """As `Teacher`, for batches with TEACHER_ROW; hidden states are a dict and 0 at padding."""
        rows = batch[TEACHER_ROW]
        # all logits are a few bytes a row: on the device, no step waits for them
        self.logits = self.logits.to(rows.device)
        return self.logits[rows], self._read_states(rows, batch["attention_mask"]) if hidden_states else None

    def _read_states(self, rows, mask):
        real = mask.bool()
        # a row without a real token stands in for none, see `lma_hf.data.collate.Collator`
        flat = torch.from_numpy(self.store.states.read(rows[real.any(1)].tolist())).to(rows.device)
        if len(flat) != int(real.sum()):
            raise ValueError(f"{int(real.sum())} tokens in the batch, {len(flat)} in the cache; tokenizers must agree")
        padded = flat.new_zeros((*mask.shape, *flat.shape[1:]))
        padded[real] = flat
        return dict(zip(self.states, padded.unbind(2), strict=True))


class TeacherEnsemble:
    """Several teachers that answer as one `Teacher`: with an average of their logits (You et al. 2017, section 3.1).

    Args:
        teachers: `Teacher`s or `CachedTeacher`s; the hidden states are those of the first.
        label_maps: for every teacher, the position in its logits of each of the first teacher's labels.
        average: "mean" or "median" (which one strange teacher among three does not move).
        weights: of the mean, one a teacher; None: all alike. They are divided by their sum.
    """

    def __init__(self, teachers, label_maps, *, average="mean", weights=None):
        self.teachers, self.label_maps, self.average = teachers, label_maps, average
        weights = torch.ones(len(teachers)) if weights is None else torch.tensor(weights)
        self.weights = weights / weights.sum()

    def __call__(self, batch, hidden_states=False):
        """As of `Teacher`."""
        first, states = self.teachers[0](batch, hidden_states)
        all_logits = [first, *(teacher(batch)[0] for teacher in self.teachers[1:])]
        pairs = zip(all_logits, self.label_maps, strict=True)
        return average_logits([logits[:, labels] for logits, labels in pairs], self.average, self.weights), states


def average_logits(logits, average, weights):
    """Mean with weights, or median, of a list of tensors (batch, num_labels), label by label.

    The median of an even number is the mean of the middle two.
    """
    stacked = torch.stack(logits)
    if average == "median":
        return stacked.quantile(0.5, dim=0)
    # elementwise, since autocast would round the logits in a matrix product
    return (weights.to(stacked)[:, None, None] * stacked).sum(0)
