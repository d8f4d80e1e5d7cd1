"""How a student's weights are quantized while it is distilled: the part of `DistillConfig` that says so."""

from dataclasses import dataclass
from typing import Literal

from lma_hf.errors import ConfigError
from lma_hf.training.options import check_positive, option


@dataclass(kw_only=True)
class QuantizeConfig:
    """Quantized distillation and Quant-Noise; see docs/quantization.md."""

    quantize: Literal["int8", "int4", "int2", "pq"] | None = option(
        None, "train with weights of so many bits, or with the codebooks of product quantization; unset: float32"
    )
    quantize_group_size: int | None = option(None, "neighbours in a row that share a scale; unset: the whole row")
    noise_rate: float = option(1.0, "share of the weights that are quantized at each step; below 1: Quant-Noise")
    modules_to_not_convert: list[str] | None = option(
        None, "modules that stay in float32, or names of what they lie in; unset: the head"
    )

    def check_quantization(self):
        """Raises: ConfigError if a value is not allowed, or is about quantization when there is none."""
        check_positive(self, "quantize_group_size")
        if not 0 <= self.noise_rate <= 1:
            raise ConfigError(f"noise_rate is {self.noise_rate}, allowed are 0 to 1")
        if self.quantize == "pq" and self.quantize_group_size is not None:
            raise ConfigError("quantize is 'pq', which has no quantize_group_size; drop it")
        if self.quantize is None:
            changed = {"quantize_group_size": None, "noise_rate": 1.0, "modules_to_not_convert": None}
            wrong = [key for key, default in changed.items() if getattr(self, key) != default]
            if wrong:
                raise ConfigError(f"{wrong[0]} is about quantized weights, but quantize is unset; set both or neither")
