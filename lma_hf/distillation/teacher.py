"""The frozen teacher."""

from contextlib import nullcontext

import torch


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
    def __call__(self, inputs, hidden_states=False):
        """Logits in float32 and the tuple of hidden states (embeddings first), or None."""
        with self.autocast():
            output = self.model(**inputs, output_hidden_states=hidden_states)
        states = output.hidden_states if hidden_states else None
        return output.logits.float(), states
