"""`lma-hf evaluate`: score a saved model."""

from accelerate import PartialState

from lma_hf.cli.run import Evaluator, label_names_of, load_data, load_tokenizer_and_model, make_accelerator
from lma_hf.compare.profiling import print_table
from lma_hf.data.collate import tokenize_splits
from lma_hf.data.labels import label_mapping
from lma_hf.errors import LabelMismatchError
from lma_hf.training.checkpoint import write_json
from lma_hf.training.config import EvaluateConfig


def evaluate(config, task=None, **options):
    """Score a saved model on a task's validation splits.

    Args: config: an `EvaluateConfig`, or the model's folder together with a GLUE `task` name and further fields of
        EvaluateConfig as keywords: `evaluate("student", "rte", dataset="glue")`.
    Returns: split -> metric -> value in [-1, 1].
    """
    if not isinstance(config, EvaluateConfig):
        config = EvaluateConfig(model_dir=str(config), task_name=task, **options)
    results = score_saved_model(config)
    if PartialState().is_main_process:
        _report(config, results)
    return results


def score_saved_model(config):
    """Split -> metric -> value in [-1, 1] of the model that an `EvaluateConfig` names."""
    accelerator = make_accelerator(config)
    splits, task = load_data(config, with_train=False)
    tokenizer, model = load_tokenizer_and_model(config.model_dir, "model")
    mapping = labels_of_model(model, task, config.dataset, config.model_dir)
    tokenized = tokenize_splits(splits, task, tokenizer, config.max_length)
    evaluator = Evaluator(tokenized, task, tokenizer, mapping, config, accelerator)
    return evaluator(model.to(accelerator.device))


def labels_of_model(model, task, dataset, name):
    """Dataset label -> model label, None for regression. Raises: LabelMismatchError if they cannot be matched."""
    if task.is_regression:
        if model.config.num_labels != 1:
            raise LabelMismatchError(
                f"dataset {dataset} has numbers as labels but model {name} has the classes {label_names_of(model)}; "
                "use a model that was trained for regression"
            )
        return None
    return label_mapping(task.label_names, label_names_of(model), dataset=dataset, model=name)


def _report(config, results):
    rows = [
        {"split": split, **{metric: 100 * value for metric, value in metrics.items()}}
        for split, metrics in results.items()
    ]
    print_table(rows, f"{config.model_dir} (x 100)")
    if config.output_file:
        write_json(results, config.output_file)
