"""`lma-hf evaluate`: score a saved model, and predict GLUE's test sets."""

import dataclasses
import logging
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict

from lma_hf.cli.accelerator import make_accelerator
from lma_hf.cli.evaluator import Evaluator
from lma_hf.cli.loading import check_max_length, labels_of_model, load_data, load_model_dir
from lma_hf.compare.profiling import print_table
from lma_hf.data.collate import make_dataloader, sort_by_length, tokenize_splits
from lma_hf.data.glue import hub_configuration, resolve_task
from lma_hf.data.glue_server import SERVER_FILES, check_server_files, to_server_format, write_server_file
from lma_hf.data.metrics import to_predictions
from lma_hf.data.sources import find_splits, load_texts
from lma_hf.errors import DataError, OutputDirError
from lma_hf.training.checkpoint import write_json
from lma_hf.training.config import EvaluateConfig
from lma_hf.training.prediction import predict_in_order

logger = logging.getLogger(__name__)


def evaluate(model_dir, task=None, **options):
    """Score a saved model on a task's validation splits: `evaluate("student", "rte", dataset="my_glue")`.

    Args:
        model_dir: the model's folder or hub id, or a whole `EvaluateConfig` in place of all arguments.
        task: GLUE task name; None for own data, whose columns `options` name. options: fields of `EvaluateConfig`.
    Returns: split -> metric -> value in [-1, 1]; empty where `predict` is set and there is no validation split.
    """
    config = model_dir
    if not isinstance(config, EvaluateConfig):
        config = EvaluateConfig(model_dir=str(model_dir), task_name=task, **options)
    if config.output_file:
        check_output_file(Path(config.output_file))
    if config.predict:
        check_server_files(Path(config.predict).expanduser(), config.task_name)
    results = score_saved_model(config)
    if PartialState().is_main_process:
        _report(config, results)
    return results


def score_saved_model(config):
    """Split -> metric -> value in [-1, 1] of the model that an `EvaluateConfig` names."""
    accelerator = make_accelerator(config)
    splits, task = _validation_data(config)
    tokenizer, model = load_model_dir(config)
    check_max_length(config, model)
    mapping = labels_of_model(model, task, config.dataset, config.model_dir)
    model.to(accelerator.device)
    tokenized = tokenize_splits(splits, task, tokenizer, config.max_length)
    results = Evaluator(tokenized, task, tokenizer, mapping, config, accelerator)(model)
    if config.predict:
        write_predictions(model, tokenizer, task, mapping, config, accelerator)
    return results


def _validation_data(config):
    """(splits to score on, task); there may be none where test sets are to be predicted."""
    task = resolve_task(config)
    if config.predict and not config.validation_split:
        split = task.validation_splits[0]
        if split not in find_splits(config.dataset, task, hub_configuration(config)):
            logger.warning("%s has no split '%s' of task '%s'; nothing is scored", config.dataset, split, task.name)
            return DatasetDict(), task
    return load_data(config, with_train=False)


def write_predictions(model, tokenizer, task, mapping, config, accelerator):
    """Predict the task's test splits, all rows in their order, and write the files for GLUE's test server.

    Args: as of `Evaluator`; config: an `EvaluateConfig` with `predict` set.
    Raises: DataError if there is no test split at all; OutputDirError.
    """
    texts = _test_texts(task, config)
    tokenized = tokenize_splits(DatasetDict(texts), task, tokenizer, config.max_length)
    answers = {}
    for name, rows in tokenized.items():
        batches = make_dataloader(
            sort_by_length(rows), tokenizer, config.per_device_eval_batch_size, shuffle=False, seed=0
        )
        logits, numbers = predict_in_order(model, accelerator.prepare(batches), accelerator)
        if mapping is not None:
            logits = logits[:, mapping]
        answers[name] = to_server_format(task, to_predictions(task, logits, numbers))
    if accelerator.is_main_process:
        _write_answers(answers, Path(config.predict).expanduser(), task)


def _test_texts(task, config):
    """File name -> rows of the split that it answers; absent ones are left out."""
    texts = {}
    for file in SERVER_FILES[task.name]:
        # the diagnostics have MNLI's columns in a folder of their own
        split_task = dataclasses.replace(task, name=file.dataset_config)
        rows = load_texts(config.dataset, split_task, file.split, dataset_config=file.dataset_config)
        if rows is not None:
            texts[file.name] = rows
    if not texts:
        wanted = ", ".join(f"{file.dataset_config}/{file.split}" for file in SERVER_FILES[task.name])
        raise DataError(f"{config.dataset} has none of the test splits {wanted}; without them drop --predict")
    return texts


def _write_answers(answers, folder, task):
    # once more, since predicting takes its time
    check_server_files(folder, task.name)
    for name, lines in answers.items():
        write_server_file(folder / name, lines)
    logger.info("predictions are in %s: %s", folder, ", ".join(answers))


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
    if rows:
        print_table(rows, f"{config.model_dir} (x 100)")
    if config.output_file:
        write_json(results, config.output_file)
