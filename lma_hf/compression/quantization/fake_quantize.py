"""Training with quantized weights: the rounding in the forward pass, the masters in float, Quant-Noise.

Quantized distillation (Polino et al. 2018, arXiv 1802.05668, section 3) is noise_rate 1: every weight is rounded at
every step. Quant-Noise (Fan et al. 2021, arXiv 2004.07320, section 4) rounds a random part of the weights only,
another at every step, so that the others get unbiased gradients.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from lma_hf.compression.quantization.targets import quantizable_modules
from lma_hf.errors import SurgeryError
from lma_hf.modeling.schemes_lma import ScalarScheme, quantize, rounded

NOISE_BLOCK = 8  # weights of a row that are rounded together, or not; the paper's block size


class FakeQuantize(nn.Module):
    """Rounds weights to a scheme's levels; the gradient goes straight through (Bengio et al. 2013, arXiv 1308.3432).

    In training, blocks of 8 weights are rounded with probability noise_rate, the others stay as they are. In eval mode
    all are rounded, so that what is evaluated is what will be saved.

    Args: scheme: a `ScalarScheme`. noise_rate: from 0 to 1.
    """

    def __init__(self, scheme, noise_rate=1.0):
        super().__init__()
        self.scheme, self.noise_rate = scheme, noise_rate

    def forward(self, weight):
        """Args: weight: of shape (..., row length). Returns: the same shape, in its dtype."""
        # without noise, and for all of it, no random number is drawn
        if self.training and self.noise_rate == 0:
            return weight
        noisy = noisy_blocks(weight, self.noise_rate) if self.training and self.noise_rate < 1 else None
        return _RoundStraightThrough.apply(weight, self.scheme, noisy)

    def parts(self, weight):
        """What a packed layer is filled with."""
        return quantize(weight, self.scheme)

    def extra_repr(self):
        return f"{self.scheme}, noise_rate={self.noise_rate}"


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scheme, noisy):
        values = rounded(weight, scheme)
        return values if noisy is None else torch.where(noisy, values, weight)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


def noisy_blocks(weight, noise_rate):
    """Boolean of the weight's shape: which weights have noise, blocks of 8 together."""
    length = weight.shape[-1]
    blocks = torch.rand(*weight.shape[:-1], math.ceil(length / NOISE_BLOCK), device=weight.device) < noise_rate
    return blocks.repeat_interleave(NOISE_BLOCK, dim=-1)[..., :length]


def prepare_quantization_(model, scheme, *, noise_rate=1.0, modules_to_not_convert=None):
    """Let a model train with quantized weights; `quantize_` makes it small at the end.

    Of embeddings only the rows are rounded that are looked up, since a row's levels depend on it alone.

    Args:
        model: a transformers model. scheme: a `ScalarScheme`.
        noise_rate: share of the weights that are rounded at each step of training, from 0 to 1.
        modules_to_not_convert: see `quantizable_modules`, which says what else is raised.
    Returns: fqn -> module of what is quantized. Raises: SurgeryError if noise_rate is not allowed, or the model was
        prepared before.
    """
    if not 0 <= noise_rate <= 1:
        raise SurgeryError(f"noise_rate is {noise_rate}, allowed are numbers from 0 to 1")
    if not isinstance(scheme, ScalarScheme):
        raise SurgeryError(f"scheme is {scheme!r}, allowed in training is a ScalarScheme")
    check_not_prepared(model)
    modules = quantizable_modules(model, modules_to_not_convert)
    for module in modules.values():
        register_step(module, FakeQuantize(scheme, noise_rate))
    return modules


def register_step(module, step):
    """Let a step change a module's weight, or the rows of an embedding that are looked up, in each pass."""
    step.train(module.training)
    if isinstance(module, nn.Embedding):
        module.fake_quantize = step
        module.register_forward_hook(_change_rows)
    else:
        # the weight is checked already, and a first pass would draw random numbers
        parametrize.register_parametrization(module, "weight", step, unsafe=True)


def _change_rows(embedding, inputs, rows):
    return embedding.fake_quantize(rows)


def check_not_prepared(model):
    """Raises: SurgeryError if a model was prepared to train with quantized weights."""
    if prepared_steps(model):
        raise SurgeryError(f"{type(model).__name__} is prepared for quantization already")


def prepared_steps(model):
    """Fqn -> (step, master) of the modules that were prepared to train with quantized weights.

    The step has a scheme, and the parts that a packed layer is filled with, made from the master.
    """
    found = {fqn: registered_step(module) for fqn, module in model.named_modules()}
    return {fqn: (step, master) for fqn, (step, master) in found.items() if hasattr(step, "parts")}


def registered_step(module):
    """(step, master) of what `register_step` has registered; (None, None) if nothing."""
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations.weight[0], module.parametrizations.weight.original
    return (module.fake_quantize, module.weight) if hasattr(module, "fake_quantize") else (None, None)
