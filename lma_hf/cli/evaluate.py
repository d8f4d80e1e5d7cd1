"""`lma-hf evaluate`: score a saved model."""

from pathlib import Path

from accelerate import PartialState

from lma_hf.cli.loading import check_max_length, labels_of_model, load_data, load_tokenizer_and_model
from lma_hf.cli.run import Evaluator, make_accelerator
from lma_hf.compare.profiling import print_table
from lma_hf.data.collate import tokenize_splits
from lma_hf.errors import OutputDirError
from lma_hf.training.checkpoint import write_json
from lma_hf.training.config import EvaluateConfig


def evaluate(model_dir, task=None, **options):
    """Score a saved model on a task's validation splits: `evaluate("student", "rte", dataset="my_glue")`.

    Args:
        model_dir: the model's folder or hub id, or a whole `EvaluateConfig` in place of all arguments.
        task: GLUE task name; None for own data, whose columns `options` name. options: fields of `EvaluateConfig`.
    Returns: split -> metric -> value in [-1, 1].
    """
    config = model_dir
    if not isinstance(config, EvaluateConfig):
        config = EvaluateConfig(model_dir=str(model_dir), task_name=task, **options)
    if config.output_file:
        check_output_file(Path(config.output_file))
    results = score_saved_model(config)
    if PartialState().is_main_process:
        _report(config, results)
    return results


def score_saved_model(config):
    """Split -> metric -> value in [-1, 1] of the model that an `EvaluateConfig` names."""
    accelerator = make_accelerator(config)
    splits, task = load_data(config, with_train=False)
    tokenizer, model = load_tokenizer_and_model(config.model_dir, "model")
    check_max_length(config, model)
    mapping = labels_of_model(model, task, config.dataset, config.model_dir)
    tokenized = tokenize_splits(splits, task, tokenizer, config.max_length)
    evaluator = Evaluator(tokenized, task, tokenizer, mapping, config, accelerator)
    return evaluator(model.to(accelerator.device))


def check_output_file(path):
    """Raises: OutputDirError if the file exists or could not be written."""
    if path.exists():
        raise OutputDirError(f"output_file {path} exists; choose another name")
    if not path.parent.is_dir():
        raise OutputDirError(f"output_file {path} is in no folder that exists; create {path.parent} first")


def _report(config, results):
    rows = [
        {"split": split, **{metric: 100 * value for metric, value in metrics.items()}}
        for split, metrics in results.items()
    ]
    print_table(rows, f"{config.model_dir} (x 100)")
    if config.output_file:
        write_json(results, config.output_file)
