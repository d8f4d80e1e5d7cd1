"""`lma-hf export`: a saved model as ONNX, also in int8, or as a torch.export program."""

from pathlib import Path

from lma_hf.cli.loading import load_model_dir, max_positions, unpacked
from lma_hf.compare.profiling import print_table
from lma_hf.export.folder import QUANTIZED, check_output_dir, export_model
from lma_hf.export.onnx import check_onnx


def export(config):
    """Export a saved sequence classification model, and verify the result against PyTorch.

    Args: config: an `ExportConfig`.
    Returns: what export.json holds: every file's size, and how far its logits are from the model's.
    """
    folder = Path(config.output_dir).expanduser()
    check_output_dir(folder)
    if config.format == "onnx":
        check_onnx()
    tokenizer, model = load_model_dir(config)
    record = export_model(
        unpacked(model),
        tokenizer,
        folder,
        format=config.format,
        quantize=config.quantize,
        max_length=max_positions(model),
    )
    _report(record, config)
    return record


def _report(record, config):
    rows = [
        {
            "file": name,
            "size MB": values["size_mb"],
            "logits off by": f"{values['max_logit_difference']:.2g}",
            "allowed": "-" if name == QUANTIZED else f"{record['tolerance']:g}",
            "same label": values["same_predictions"],
            "of": values["num_rows"],
        }
        for name, values in record["files"].items()
    ]
    print_table(rows, f"{config.output_dir}: {config.model_dir} against PyTorch, on random sentences")
