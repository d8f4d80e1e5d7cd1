"""Whether an exported file computes what the model computes."""

import contextlib
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from lma_hf.errors import ExportError
from lma_hf.export.plain import ExportableLMA
from lma_hf.export.program import one_line
from lma_hf.surgery.eval_mode import eval_mode

TOLERANCE = 1e-4  # of a logit, absolute
# Between two pieces that do not meet y jumps, and in a sentence with a pre-activation this close to a jump rounding
# decides on which side it lies. PyTorch differs from itself there: see docs/export.md.
EDGE = 1e-5
EDGE_TOLERANCE = 0.1
# (rows, tokens): alone and in a batch, one token, padded or not, none of them a size that was traced
SHAPES = ((1, 1), (1, 2), (5, 1), (8, 4), (1, 24), (4, 17), (3, 64))


@dataclass(frozen=True)
class Verification:
    """How far an exported model is from the PyTorch model on some sentences.

    Attributes:
        num_rows: sentences in which no pre-activation lies on a jump of an LMA; there are none in other models.
        max_logit_difference: absolute, over these sentences and all outputs.
        same_predictions: of these sentences, those with the same argmax; None where there is one output.
        num_on_edge: further sentences, where rounding decides. max_difference_on_edge: over these; 0 without one.
    """

    num_rows: int
    max_logit_difference: float
    same_predictions: int | None
    num_on_edge: int = 0
    max_difference_on_edge: float = 0.0

    def __str__(self):
        same = "" if self.same_predictions is None else f", same prediction on {self.same_predictions}"
        edge = f"; on {self.num_on_edge} more, where rounding decides, by {self.max_difference_on_edge:.2g}"
        text = f"{self.num_rows} sentences logits differ by {self.max_logit_difference:.2g} at most{same}"
        return text + edge * (self.num_on_edge > 0)


def probe_batches(names, vocab_size, pad_token_id=0, max_length=None, seed=0):
    """Random sentences of SHAPES, and each batch of several once more with shorter rows padded.

    Args: names: inputs to make, of input_ids, attention_mask and token_type_ids. max_length: in tokens.
    Returns: a list of dicts of int64 tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for rows, length in SHAPES:
        length = min(length, max_length or length)
        full = torch.full((rows,), length)
        shorter = torch.randint(1, length + 1, (rows,), generator=generator)
        shorter[0] = length
        for lengths in [full] if rows == 1 or length == 1 else [full, shorter]:
            mask = (torch.arange(length) < lengths[:, None]).long()
            ids = torch.randint(vocab_size, (rows, length), generator=generator)
            types = (torch.arange(length) >= lengths[:, None] // 2).long() * mask
            ids = torch.where(mask == 1, ids, pad_token_id)
            batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            batches.append({name: batch[name] for name in names})
    return batches


def compare(expected, run, batches, on_edge=None):
    """Compare an exported model with what the model gives.

    Args:
        expected: logits, an array a batch. run: batch -> logits as an array. batches: from `probe_batches`.
        on_edge: from `rows_on_edge`; None: no row is.
    Returns: Verification.
    """
    wanted = np.concatenate(expected)
    actual = np.concatenate([run(batch) for batch in batches])
    edge = np.zeros(len(wanted), dtype=bool) if on_edge is None else np.concatenate(on_edge)
    difference = np.abs(wanted - actual).reshape(len(wanted), -1).max(-1)
    several = wanted.ndim > 1 and wanted.shape[-1] > 1
    same = int((wanted.argmax(-1) == actual.argmax(-1))[~edge].sum()) if several else None
    # max, which keeps NaN, of at least one number
    largest, largest_on_edge = (float(np.append(part, 0).max()) for part in (difference[~edge], difference[edge]))
    return Verification(int((~edge).sum()), largest, same, int(edge.sum()), largest_on_edge)


def check_finite(verification, name):
    """Raises: ExportError if a logit is not finite."""
    if not math.isfinite(verification.max_logit_difference + verification.max_difference_on_edge):
        raise ExportError(f"{name} gives logits that are not finite, unlike the model; nothing was kept")


def check(verification, name, tolerance=TOLERANCE):
    """Raises: ExportError unless the logits are within the tolerance and every prediction is the same.

    On edges rounding decides, so that only EDGE_TOLERANCE holds there.
    """
    check_finite(verification, name)
    within = verification.max_logit_difference <= tolerance and verification.max_difference_on_edge <= EDGE_TOLERANCE
    if not within or verification.same_predictions not in (None, verification.num_rows):
        raise ExportError(
            f"{name} is not the model: on {verification}; allowed are {tolerance:g}, all {verification.num_rows} "
            f"predictions, and {EDGE_TOLERANCE:g} where rounding decides; nothing was kept"
        )


@torch.no_grad()
def rows_on_edge(model, batches):
    """Rows with a real token of which some pre-activation is within EDGE of a jump, as an array of bools a batch.

    Args: model: from `exportable`.
    """
    found = []
    for batch in batches:
        distances = []
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, ExportableLMA):
                    observe = functools.partial(_note_distance, distances, batch["attention_mask"])
                    handle = module.register_forward_pre_hook(observe)
                    stack.callback(handle.remove)
            model(**batch)
        nearest = torch.stack(distances).amin(0) if distances else torch.full((len(batch["input_ids"]),), torch.inf)
        found.append((nearest < EDGE).numpy())
    return found


def _note_distance(distances, mask, module, args):
    distance = module.distance_to_jump(args[0]).amin(-1).reshape(len(mask), -1)
    if distance.shape == mask.shape:  # not in a model that pads its input further
        distance = distance.masked_fill(mask == 0, torch.inf)
    distances.append(distance.amin(-1))


@torch.no_grad()
def logits_of_model(model, batches):
    """The model's logits, an array a batch. Raises: ExportError if one is not finite, or the batches are refused."""
    device = next(model.parameters()).device
    try:
        with eval_mode(model):
            outputs = [model(**{name: value.to(device) for name, value in batch.items()}) for batch in batches]
    except Exception as error:  # whatever a model does that wants other inputs than random tokens
        raise ExportError(
            f"{type(model).__name__} does not take random tokens, by which exports are verified: {one_line(error)}"
        ) from error
    logits = [output.logits.float().cpu().numpy() for output in outputs]
    if not all(np.isfinite(values).all() for values in logits):
        raise ExportError(f"{type(model).__name__} gives logits that are not finite; look for NaN in its weights")
    return logits


def onnx_runner(path, threads=None):
    """An ONNX file as a function from batches of tensors to logits, on the CPU.

    Args: threads: of one call, which then leaves the CPU to others; None: ONNX Runtime's choice.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]


def program_runner(path):
    """A saved torch.export program as a function from batches of tensors to logits."""
    module = torch.export.load(path).module()

    def run(batch):
        with torch.no_grad():
            return module(**batch).numpy()

    return run
