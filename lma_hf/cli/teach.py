"""`lma-hf teach`: fine-tune a teacher."""

from lma_hf.cli.run import TrainingRun, label_names_of, load_data
from lma_hf.data.labels import label_mapping
from lma_hf.distillation.objective import TaskObjective


def teach(config):
    """Fine-tune a pretrained model on a task; the best model lands in config.output_dir.

    Args: config: a `TeachConfig`.
    Returns: what results.json holds.
    """
    run = TrainingRun(config, "teach")
    splits, task = load_data(config, with_train=True, seed=config.seed)
    tokenizer, model = run.load(config.model_name_or_path, "pretrained model", **_head_for(task))
    mapping = None
    if not task.is_regression:
        mapping = label_mapping(task.label_names, label_names_of(model), dataset=config.dataset, model="to be trained")
    tokenized = run.tokenize(splits, task, tokenizer, mapping)
    evaluator = run.evaluator(tokenized, task, tokenizer, mapping)
    records = {"model": config.model_name_or_path}
    return run.train(model, tokenizer, TaskObjective(), tokenized, evaluator, records)


def _head_for(task):
    """Keyword arguments of from_pretrained for a fresh head with the task's label names."""
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(task.label_names))
    return {
        "num_labels": task.num_labels,
        "problem_type": "single_label_classification",
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        # a head with other labels is replaced by a fresh one
        "ignore_mismatched_sizes": True,
    }
