"""The training batches in order, from any place in the data."""

from itertools import islice

from accelerate import skip_first_batches

from lma_hf.training.random_state import random_state, set_random_state


class BatchStream:
    """Passes over a loader that know where they stand and go on from there.

    Attributes: epoch: passes done. done: batches of this pass that were handed out.

    Args: loader: a DataLoader that `accelerator.prepare` returned. device: whose random numbers count.
    """

    def __init__(self, loader, device):
        self.loader, self.device = loader, device
        self.epoch, self.done, self.start = 0, 0, None

    def __len__(self):
        """Batches of a whole pass."""
        return len(self.loader)

    def steps(self, batches_per_step):
        """The batches of every optimizer step of the rest of this pass, as lists; the last may be shorter."""
        batches = iter(self)
        while step := list(islice(batches, batches_per_step)):
            yield step

    def __iter__(self):
        """The rest of this pass; one that was left early goes on where it was."""
        before = random_state(self.device, self._generator())
        if self.done:
            # the order of a pass is drawn when it starts, so it is drawn again from the same random state
            set_random_state(self.start, self.device, self._generator())
        else:
            self.start = before
        for batch in self._loader_from_here():
            if before is not None and self.done:
                set_random_state(before, self.device, self._generator())
            before = None
            self.done += 1
            yield batch
        self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self):
        """Where the stream stands on this process; between two batches."""
        if self.done == len(self.loader):
            return {"epoch": self.epoch + 1, "done": 0, "start": None}
        return {"epoch": self.epoch, "done": self.done, "start": self.start}

    def load_state_dict(self, state):
        """Stand where `state_dict` was taken."""
        self.epoch, self.done, self.start = state["epoch"], state["done"], state["start"]

    def random_state(self):
        """`random_state` of this process, with the generator that orders the rows."""
        return random_state(self.device, self._generator())

    def set_random_state(self, state):
        """Put back what `random_state` returned."""
        set_random_state(state, self.device, self._generator())

    def _loader_from_here(self):
        loader = skip_first_batches(self.loader, self.done) if self.done else self.loader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epoch)
        return loader

    def _generator(self):
        """The generator of the loader's sampler, however deep Accelerate has wrapped it."""
        sampler = self.loader.batch_sampler
        while sampler is not None and getattr(sampler, "generator", None) is None:
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
        return getattr(sampler, "generator", None)
