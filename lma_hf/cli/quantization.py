"""Quantized weights as a configuration asks for them."""

import logging

from accelerate.utils import DistributedType
from torch import nn

from lma_hf.compression.quantization.codebooks import prepare_codebooks_
from lma_hf.compression.quantization.fake_quantize import prepare_quantization_
from lma_hf.compression.quantization.product_noise import prepare_product_noise_
from lma_hf.compression.quantization.targets import left_alone, left_alone_text
from lma_hf.errors import ConfigError
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme, scheme_to_dict

logger = logging.getLogger(__name__)
BITS = {"int8": 8, "int4": 4, "int2": 2}
# larger blocks leave little of what MiniLM-L6 has learned: docs/quantization.md
PRODUCT = {nn.Linear: ProductScheme(block_size=2), nn.Embedding: ProductScheme(block_size=4)}


def scheme_of(recipe, group_size):
    """What a recipe's name stands for: "int8", "int4", "int2", or "pq" for product quantization."""
    return PRODUCT if recipe == "pq" else ScalarScheme(BITS[recipe], group_size)


def scheme_record(scheme):
    """What records say of it."""
    if scheme is PRODUCT:
        return {"method": "product", **{kind.__name__.lower(): vars(one) for kind, one in PRODUCT.items()}}
    return scheme_to_dict(scheme)


def prepare_quantization(student, config, accelerator):
    """Let the student train with the weights that a `DistillConfig` asks for.

    Returns: what results.json says of it; None where the weights stay as they are.
    Raises: ConfigError if the student's weights are to be spread over processes.
    """
    if config.quantize is None:
        return None
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"quantize is {config.quantize!r}, which needs whole weights on every process, but accelerate uses "
            f"{accelerator.distributed_type.value}; use several processes without it"
        )
    scheme = scheme_of(config.quantize, config.quantize_group_size)
    kept = config.modules_to_not_convert
    if scheme is PRODUCT and config.noise_rate < 1:
        modules = prepare_product_noise_(student, config.noise_rate, modules_to_not_convert=kept)
    elif scheme is PRODUCT:
        modules = prepare_codebooks_(student, scheme, modules_to_not_convert=kept)
    else:
        modules = prepare_quantization_(student, scheme, noise_rate=config.noise_rate, modules_to_not_convert=kept)
    if left := left_alone(student):
        logger.info("%s", left_alone_text(left))
    logger.info(
        "training with %d modules quantized: %s, noise rate %g", len(modules), config.quantize, config.noise_rate
    )
    return {**scheme_record(scheme), "noise_rate": config.noise_rate, "modules": list(modules)}
