"""Optimizer steps whose loss or gradients are not finite are left out, without waiting for the device."""

import torch


class NanGuard:
    """Makes one optimizer step at a time harmless, if it has to be.

    Whether a step is bad stays a number on the device: the fused optimizer reads it there (as it does for a gradient
    scaler) and the buffers (running statistics) are put back by it. It is fetched with the losses of a log line.

    Args: model: whose buffers are kept. optimizer: as `accelerator.prepare` returned it.
    """

    def __init__(self, model, optimizer, accelerator):
        self.buffers, self.optimizer, self.accelerator = list(model.buffers()), optimizer, accelerator
        self.total, self.recent = 0, []

    def before_step(self):
        """Remember what the forward passes of the step change."""
        self.copies = [buffer.clone() for buffer in self.buffers]

    def mark(self, loss):
        """The loss, with NaN as its gradient where it is not finite; so every process will see NaN gradients."""
        return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)

    def judge(self, step, gradient_norm):
        """Between the backward pass and `optimizer.step`: a norm that is not finite makes the step a bad one."""
        self.bad = ~torch.isfinite(gradient_norm)
        self.recent.append((step, self.bad))
        if self.accelerator.scaler is None:  # a scaler leaves such steps out by itself
            self.optimizer.optimizer.found_inf = self.bad.float()

    def after_step(self):
        """Put the buffers back if the step was bad."""
        for buffer, copy in zip(self.buffers, self.copies, strict=True):
            buffer.copy_(torch.where(self.bad, copy, buffer))

    def report(self):
        """Numbers of the steps left out since the last call; this waits for the device."""
        if not self.recent:
            return []
        flags = torch.stack([bad for _, bad in self.recent]).tolist()
        steps = [step for (step, _), bad in zip(self.recent, flags, strict=True) if bad]
        self.recent, self.total = [], self.total + len(steps)
        return steps

    def state_dict(self):
        """Counts so far."""
        return {"total": self.total, "recent": [(step, bool(bad)) for step, bad in self.recent]}

    def load_state_dict(self, state, device):
        """Go on counting from `state_dict`."""
        self.total = state["total"]
        self.recent = [(step, torch.tensor(bad, device=device)) for step, bad in state["recent"]]
