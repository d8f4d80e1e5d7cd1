"""`lma-hf teach`: fine-tune a teacher."""

from lma_hf.cli.loading import load_data
from lma_hf.cli.run import TrainingRun
from lma_hf.distillation.objective import TaskObjective


def teach(config):
    """Fine-tune a pretrained model on a task; the best model lands in config.output_dir.

    Args: config: a `TeachConfig`.
    Returns: what results.json holds.
    """
    run = TrainingRun(config, "teach", config.model_name_or_path)
    if run.finished_results is not None:
        return run.finished_results
    splits, task = load_data(config, with_train=True)
    tokenizer, model = run.load_for_training(config.model_name_or_path, "pretrained model", **_head_for(task))
    run.freeze_(model)
    # the head was made for the dataset's labels, in their order
    mapping = None if task.is_regression else list(range(task.num_labels))
    tokenized = run.tokenize(splits, task, tokenizer, mapping)
    evaluator = run.evaluator(tokenized, task, tokenizer, mapping)
    records = {"model": config.model_name_or_path}
    return run.train(model, tokenizer, TaskObjective(), tokenized, evaluator, records)


def _head_for(task):
    """Keyword arguments of from_pretrained for a head with the task's labels."""
    if task.is_regression:
        return {"num_labels": task.num_labels, "problem_type": "regression"}
    names = dict(enumerate(task.label_names))
    return {
        "num_labels": task.num_labels,
        "problem_type": "single_label_classification",
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }
