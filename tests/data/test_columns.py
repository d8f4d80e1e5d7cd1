import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lma_hf.data.columns import check_columns, encode_split, find_label_names
from lma_hf.data.glue import custom_task, fill_label_names
from lma_hf.errors import DataError, LabelMismatchError

MINE = custom_task("mine", ["text"], "label")
NAMED = custom_task("mine", ["text"], "label", label_names=["negative", "positive"])
STARS = custom_task("mine", ["text"], "label", label_names=list("12345"))
SIGNS = custom_task("mine", ["text"], "label", label_names=["-1", "0", "1"])
SCORES = custom_task("scores", ["text"], "label", is_regression=True)
WHERE = "split 'train' of here"


def dataset_of(labels, names=None):
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)}) if names else None
    return Dataset.from_list(rows, features=features)


def encode(dataset, task):
    if not task.is_regression:
        task = fill_label_names(task, find_label_names({"train": dataset}, task, "here"))
    return encode_split(dataset, task, WHERE)["label"], task.label_names


@pytest.mark.parametrize(
    ("labels", "task", "names", "ids"),
    [
        (["pos", "neg", "pos"], MINE, ("neg", "pos"), [1, 0, 1]),
        ([2, 0, 1], MINE, ("0", "1", "2"), [2, 0, 1]),
        ([True, False], MINE, ("false", "true"), [1, 0]),
        (["positive", "negative"], NAMED, ("negative", "positive"), [1, 0]),
        ([1, 1], NAMED, ("negative", "positive"), [1, 1]),
        ([5, 1, 3], STARS, ("1", "2", "3", "4", "5"), [4, 0, 2]),
        ([1, 4], STARS, ("1", "2", "3", "4", "5"), [0, 3]),
        ([0, -1, 1], SIGNS, ("-1", "0", "1"), [1, 0, 2]),
        ([1, 5], SCORES, None, [1.0, 5.0]),
        ([0.5, 2.5], SCORES, None, [0.5, 2.5]),
    ],
)
def test_labels_become_ids_or_scores(labels, task, names, ids):
    column, found = encode(dataset_of(labels), task)
    assert found == names
    assert column[:] == ids


@pytest.mark.parametrize(("task", "dtype"), [(NAMED, "int64"), (SCORES, "float32")])
def test_only_the_task_columns_remain(task, dtype):
    dataset = dataset_of([0, 1]).add_column("idx", [7, 8])
    encoded = encode_split(dataset, task, WHERE)
    assert encoded.features == Features({"text": Value("string"), "label": Value(dtype)})
    assert encoded["text"][:] == ["row 0", "row 1"]


def test_class_label_names_of_the_dataset_win_and_ids_stay():
    column, names = encode(dataset_of([1, 0, 1], ["positive", "negative"]), NAMED)
    assert names == ("positive", "negative")
    assert column[:] == [1, 0, 1]


def test_ids_of_a_class_label_stay_ids_where_its_names_are_integers():
    column, names = encode(dataset_of([1, 0, 3], ["1", "2", "3", "4", "5"]), MINE)
    assert names == STARS.label_names
    assert column[:] == [1, 0, 3]


def test_integers_are_the_names_that_another_split_has_as_texts():
    names = find_label_names({"train": dataset_of(["3", "1", "2"]), "validation": dataset_of([2, 1])}, MINE, "here")
    assert encode_split(dataset_of([2, 1]), fill_label_names(MINE, names), WHERE)["label"][:] == [1, 0]


@pytest.mark.parametrize("names", [["positive", "maybe"], ["positive", "negative", "maybe"]])
def test_class_label_names_of_another_task_are_refused(names):
    with pytest.raises(LabelMismatchError, match=r"declares the labels \['positive'.*task 'mine' has \['negative'"):
        encode(dataset_of([0, 1], names), NAMED)


def test_splits_that_declare_different_names_are_refused():
    splits = {"train": dataset_of([0, 1], ["a", "b"]), "validation": dataset_of([0, 1], ["b", "a"])}
    with pytest.raises(LabelMismatchError, match=r"declare different labels: .*'train': \('a', 'b'\)"):
        find_label_names(splits, MINE, "here")


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        ([0, 1, 3], MINE, "integer labels 0 to 3 with 3 different values; allowed: 0 to n-1"),
        ([0, 0], MINE, r"only the label \['0'\]; at least 2"),
        ([1, 1], MINE, "integer labels 1 to 1 with 1 different values"),
        (["a", "a"], MINE, r"has only the label \['a'\]; at least 2"),
        ([0, -1, -1], MINE, r"hidden \(-1 in 2 of 3 rows\).*use another split, or pass label_names if -1 is a class"),
        ([5, -1], STARS, r"hidden \(-1 in 1 of 2 rows\).*use another split$"),
        ([0, 5], STARS, "the label '0' in row 0; allowed: 1, 2, 3, 4, 5"),
        ([0.5, 1.0], MINE, "double labels; allowed: integers"),
        ([0, None], MINE, "1 missing labels, the first in row 1"),
        (["a", ""], MINE, "1 missing labels, the first in row 1"),
        ([None, None], MINE, "2 missing labels, the first in row 0"),
        ([0, 2], NAMED, r"label 2 in row 1; allowed: 0 to 1 \(negative, positive\)"),
        ([0, -2], NAMED, "label -2 in row 1; allowed: 0 to 1"),
        ([-1, -1], NAMED, "labels of split 'train' of .* are hidden"),
        (["positiv", "negative"], NAMED, "'positiv' in row 0, did you mean 'positive'.* allowed: negative, positive"),
        (["1.5", "x"], SCORES, "labels such as '1.5'; regression task 'scores' needs numbers"),
        ([1.5, None], SCORES, "1 missing labels"),
        ([1.5, float("nan")], SCORES, "label nan in row 1; finite numbers"),
        ([1.5, float("inf")], SCORES, "label inf in row 1; finite numbers"),
        ([-1.0, -1.0], SCORES, r"hidden \(-1 in 2 of 2 rows\)"),
    ],
)
def test_unusable_labels_are_refused(labels, task, message):
    with pytest.raises(DataError, match=message) as caught:
        encode(dataset_of(labels), task)
    assert WHERE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "1 missing texts in column 'text', .*row 1"),
        ([1, 2], "int64 values in column 'text'; text is needed"),
    ],
)
def test_unusable_texts_are_refused(texts, message):
    with pytest.raises(DataError, match=message):
        encode_split(Dataset.from_dict({"text": texts, "label": [0, 1]}), NAMED, WHERE)


def test_missing_columns_and_rows_are_refused():
    with pytest.raises(DataError, match=r"no column 'text', did you mean 'txt'.*columns there: txt, label"):
        check_columns(Dataset.from_dict({"txt": ["a"], "label": [0]}), MINE, WHERE)
    with pytest.raises(DataError, match=r"split 'train' of here has 0 rows"):
        check_columns(Dataset.from_dict({"text": [], "label": []}), MINE, WHERE)
