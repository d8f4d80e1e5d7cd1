import pyarrow.parquet as pq
import pytest
from datasets import Features

from lma_hf.data.glue import GLUE_TASKS, custom_task, fill_label_names, get_task, hub_configuration, resolve_task
from lma_hf.data.metrics import METRICS
from lma_hf.errors import DataError
from lma_hf.training.config import EvaluateConfig

SPLITS_WITH_NAMES = ("train", "validation", "validation_matched")


def test_all_nine_tasks_are_there():
    assert set(GLUE_TASKS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}


@pytest.mark.parametrize("task", GLUE_TASKS.values(), ids=GLUE_TASKS)
def test_every_task_is_consistent(task):
    assert len(task.text_columns) in (1, 2)
    assert set(task.metrics) <= set(METRICS)
    assert task.best_metric in task.metrics
    assert task.is_regression == (task.name == "stsb")
    assert task.num_labels == {"stsb": 1, "mnli": 3}.get(task.name, 2)


@pytest.mark.parametrize("task", GLUE_TASKS.values(), ids=GLUE_TASKS)
def test_columns_and_label_names_are_those_of_the_dataset(task, glue_dir):
    files = [path for path in (glue_dir / task.name).glob("*.parquet") if path.stem in SPLITS_WITH_NAMES]
    for path in files:
        features = Features.from_arrow_schema(pq.read_schema(path))
        assert set(features) == {*task.text_columns, task.label_column, "idx"}
        assert task.is_regression or tuple(features["label"].names) == task.label_names
    assert files


def test_mnli_keeps_its_two_validation_splits_apart():
    assert get_task("mnli").validation_splits == ("validation_matched", "validation_mismatched")


@pytest.mark.parametrize(("name", "hint"), [("SST-2", "did you mean 'sst2'"), ("xyz", "unknown task 'xyz'; allowed")])
def test_unknown_task_names_the_nearest_and_the_list(name, hint):
    with pytest.raises(DataError, match=hint) as caught:
        get_task(name)
    assert all(task in str(caught.value) for task in GLUE_TASKS)


@pytest.mark.parametrize(
    ("options", "metrics", "best"),
    [
        ({"label_names": ["no", "yes"]}, ("accuracy", "f1"), "accuracy"),
        ({"label_names": ["a", "b", "c"]}, ("accuracy",), "accuracy"),
        ({"is_regression": True}, ("pearson", "spearmanr"), "pearson"),
    ],
)
def test_custom_task_chooses_metrics(options, metrics, best):
    task = custom_task("mine", ["text"], "target", train_split="tr", validation_split="dev", **options)
    assert (task.metrics, task.best_metric) == (metrics, best)
    assert (task.label_column, task.train_split, task.validation_splits) == ("target", "tr", ("dev",))


def test_unknown_classes_are_an_error_until_they_are_filled_in():
    task = custom_task("mine", ["text"], "label")
    assert not task.is_regression
    with pytest.raises(DataError, match="classes of task 'mine' are not known yet"):
        _ = task.num_labels
    filled = fill_label_names(task, ["no", "yes"])
    assert (filled.num_labels, filled.metrics) == (2, ("accuracy", "f1"))


def test_task_of_a_config_takes_what_is_said_of_its_columns_and_the_hub():
    config = EvaluateConfig(model_dir="m", task_name="sst2")
    assert resolve_task(config) == get_task("sst2")
    assert hub_configuration(config) == "sst2"
    config = EvaluateConfig(model_dir="m", task_name="sst2", label_column="gold", dataset_config="default")
    assert resolve_task(config).label_column == "gold"
    assert hub_configuration(config) == "default"


def test_filling_in_names_keeps_the_metrics_of_a_glue_task():
    assert fill_label_names(get_task("sst2"), ["neg", "pos"]).metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("text", {}, "text_columns 'text'; give a list of 1 or 2"),
        (["a", "b", "c"], {}, "give a list of 1 or 2 column names"),
        (["a"], {"label_names": ["x", "x"]}, "at least 2 different names"),
        (["a"], {"label_names": ["x", "y"], "is_regression": True}, "none for regression"),
    ],
)
def test_impossible_custom_tasks_are_refused(columns, options, message):
    with pytest.raises(DataError, match=message):
        custom_task("mine", columns, "label", **options)
