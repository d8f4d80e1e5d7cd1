"""SIGTERM, and what several processes agree on without waiting for each other."""

import contextlib
import datetime
import signal
import threading

import torch
import torch.distributed as dist

from lma_hf.errors import LmaHfError, LostProcessError


class Sigterm:
    """Inside the context SIGTERM only sets `received`; outside it does what it did before."""

    def __enter__(self):
        self.received, self.previous = False, None
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception):
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)

    def _note(self, number, frame):
        # torchrun and Slurm may both send it, so a second one changes nothing
        self.received = True


class Agreement:
    """The largest of each value over all processes. With several, the answer is that of the call before.

    So no process waits for another, and no GPU for its CPU: the exchange runs on Gloo beside the training.

    Args: num_values: how many. timeout_s: seconds that a process waits for the others.
    """

    def __init__(self, num_values, timeout_s):
        self.pending, self.group, self.none = None, None, [0] * num_values
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def __call__(self, values):
        if self.group is None:
            return list(values)
        answer = self.finish()
        tensor = torch.tensor(values, dtype=torch.int32)
        self.pending = dist.all_reduce(tensor, dist.ReduceOp.MAX, self.group, async_op=True), tensor
        return answer

    def finish(self):
        """The answer that is under way, zeros if none is."""
        if self.pending is None:
            return self.none
        work, tensor = self.pending
        self.pending = None
        work.wait()
        return tensor.tolist()


@contextlib.contextmanager
def lost_process_is_an_error():
    """Raises: LostProcessError where a collective operation fails because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        # Gloo has no error class of its own
        if isinstance(error, LmaHfError) or not (isinstance(error, dist.DistError) or "gloo" in text.lower()):
            raise
        raise LostProcessError(
            f"another process of this run ended or does not answer ({text[:200]}); see its messages, then go on "
            "with --resume true"
        ) from error
