"""`lma-hf compress`: a saved model with weights of few bits, packed."""

import logging
from dataclasses import asdict
from pathlib import Path

from lma_hf.cli.loading import load_tokenizer_and_model
from lma_hf.cli.quantization import BITS
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.export.folder import folder_to_be
from lma_hf.modeling.packed_lma import ScalarScheme
from lma_hf.training.checkpoint import write_json

logger = logging.getLogger(__name__)
RECORD = "compression.json"


def compress(config):
    """Quantize a saved sequence classification model.

    Args: config: a `CompressConfig`.
    Returns: what compression.json holds: the recipe, sizes in MB, the weights' SQNR in dB.
    """
    with folder_to_be(Path(config.output_dir).expanduser()) as folder:
        tokenizer, model = load_tokenizer_and_model(
            config.model_dir,
            "model",
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            complete=True,
        )
        scheme = ScalarScheme(BITS[config.recipe], config.quantize_group_size)
        report = quantize_(model, scheme, modules_to_not_convert=config.modules_to_not_convert)
        logger.info("%s", report)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record = {
            "recipe": config.recipe,
            **asdict(scheme),
            "modules": list(report.quantized),
            "weights_mb": report.size_mb,
            "weights_mb_before": report.size_mb_before,
            "sqnr_db": report.sqnr_db,
        }
        record["folder_mb"] = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        write_json(record, folder / RECORD)
    return record
