"""Quant-Noise for product quantization: training that gets used to blocks being replaced."""

import torch
from torch import nn

from lma_hf.compression.quantization.fake_quantize import noisy_blocks, register_step
from lma_hf.compression.quantization.targets import quantizable_modules
from lma_hf.errors import SurgeryError


class ZeroBlocks(nn.Module):
    """In training, random blocks of 8 weights are 0, and the others larger, as in dropout; in eval mode all stay.

    The proxy of Fan et al. 2021 (arXiv 2004.07320, section 4.2) for the noise of product quantization, which scores
    like the exact one there and needs no codebook in training. The gradient goes straight through. Dividing the others
    by 1 - noise_rate is not in the paper, but in its authors' code: so evaluation, without noise, sees layers of the
    strength that training has seen.

    Args: noise_rate: share of the blocks, from 0 to 1.
    """

    def __init__(self, noise_rate):
        super().__init__()
        self.noise_rate = noise_rate

    def forward(self, weight):
        """Args: weight: of shape (..., row length). Returns: the same shape."""
        if not self.training or self.noise_rate == 0:
            return weight
        with torch.no_grad():
            noise = (weight / (1 - self.noise_rate)).masked_fill_(noisy_blocks(weight, self.noise_rate), 0) - weight
        return weight + noise


def prepare_product_noise_(model, noise_rate, *, modules_to_not_convert=None):
    """Let a model train with noise; its weights stay in float, and `state_without_noise` is what to save.

    Args: noise_rate: from 0 to below 1. modules_to_not_convert: see `quantizable_modules`, which says what is raised.
    Returns: fqn -> module that has noise. Raises: SurgeryError also for another noise_rate.
    """
    if not 0 <= noise_rate < 1:
        raise SurgeryError(f"noise_rate is {noise_rate}, allowed for blocks that become 0 are 0 to below 1")
    modules = quantizable_modules(model, modules_to_not_convert)
    for module in modules.values():
        register_step(module, ZeroBlocks(noise_rate))
    return modules


def state_without_noise(model):
    """The state dict that the model would have if it had never been prepared."""
    return {name.replace(".parametrizations.weight.original", ".weight"): x for name, x in model.state_dict().items()}
