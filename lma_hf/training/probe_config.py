"""What `lma-hf probe` can be told."""

from dataclasses import dataclass, field

from lma_hf.errors import ConfigError
from lma_hf.training.config import DataConfig
from lma_hf.training.options import check_positive, option


@dataclass(kw_only=True)
class ProbeConfig(DataConfig):
    """Fit narrow FFNs to a model's own, once with each activation."""

    model_name_or_path: str = field(metadata={"help": "model whose FFNs are fitted to: hub id or folder"})
    output_dir: str = field(metadata={"help": "folder for the results, the table and the picture"})
    overwrite_output_dir: bool = option(False, "delete what output_dir holds")
    activations: list[str] = option(
        ["gelu", "gelu_affine", "relu", "lma fit running per_channel"],
        "what is compared, each a few words such as 'lma-16 fit running per_channel continuous range_sigmas=2.5'",
    )
    reference: str = option("gelu", "which of the activations the others are compared with")
    layers: list[int] | None = option(None, "layers from 0; unset: the first, the middle and the last")
    widths: list[int] | None = option(None, "widths of the narrow FFNs; unset: 1/16, 1/8 and 1/4 of the model's")
    num_seeds: int = option(2, "fits of each FFN, which differ in the order of their batches")
    learning_rates: list[float] = option([3e-3, 1e-2, 3e-2], "rates of the weights that are tried, per activation")
    activation_learning_rates: list[float] = option(
        [1e-3, 1e-2, 5e-2], "rates of activation parameters that are tried, per activation"
    )
    num_steps: int = option(300, "optimizer steps of each fit")
    batch_size: int = option(256, "tokens of a step")
    max_train_samples: int | None = option(1000, "texts whose tokens are fitted to")
    max_eval_samples: int | None = option(500, "texts that are held out, one half to tune and one half to report")

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "num_seeds", "num_steps", "batch_size")
        for key in ("layers", "widths", "learning_rates", "activation_learning_rates"):
            self._check_rising(key, above=-1 if key == "layers" else 0)

    def _check_rising(self, key, above):
        values = getattr(self, key)
        if values is None:
            return
        if not values or sorted(set(values)) != values or not all(above < value < float("inf") for value in values):
            raise ConfigError(
                f"{key} is {values}, allowed are numbers above {above}, at least one, each once and in rising order"
            )
