"""Mean losses between two log lines."""

import time

import torch


class LossWindow:
    """Mean losses and rate since the last log line; losses stay on their device until the window closes.

    Args: skip_nan: leave batches out whose loss is not finite, instead of letting it spoil the mean.
    """

    def __init__(self, skip_nan=False):
        self.skip_nan = skip_nan
        self.restart(0)

    def restart(self, examples):
        self.totals, self.count = {}, 0
        self.start, self.first_example = time.perf_counter(), examples

    def add(self, parts, share):
        """Args: parts: name -> loss of a batch. share: how much of a step the batch is, see `shares_of_step`."""
        kept = torch.isfinite(parts["loss"].detach()) if self.skip_nan else None
        for name, value in parts.items():
            value = value.detach() * share
            self.totals[name] = self.totals.get(name, 0) + (torch.where(kept, value, 0) if self.skip_nan else value)
        self.count += share * kept if self.skip_nan else share

    def close(self, accelerator, examples):
        """(mean losses over the window and all processes, examples a second), and start anew.

        A loss is None where no batch of the window had a finite one and such batches are left out.
        """
        totals = [total.float() for total in self.totals.values()]
        count = torch.as_tensor(self.count, dtype=torch.float32, device=totals[0].device)
        *sums, count = accelerator.reduce(torch.stack([*totals, count]), reduction="sum").tolist()
        rate = (examples - self.first_example) / max(time.perf_counter() - self.start, 1e-9)
        losses = {name: value / count if count else None for name, value in zip(self.totals, sums, strict=True)}
        self.restart(examples)
        return losses, round(rate, 1)

    def state_dict(self):
        """The window as it stands on this process."""
        totals = {name: total.cpu() for name, total in self.totals.items()}
        seconds = time.perf_counter() - self.start
        return {"totals": totals, "count": float(self.count), "seconds": seconds, "first_example": self.first_example}

    def load_state_dict(self, state, device):
        """Go on with a window of `state_dict`."""
        self.totals = {name: total.to(device) for name, total in state["totals"].items()}
        self.count, self.first_example = state["count"], state["first_example"]
        self.start = time.perf_counter() - state["seconds"]
