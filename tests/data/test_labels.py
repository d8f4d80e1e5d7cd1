import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.data.labels import align_labels, check_same_labels, label_mapping
from lma_hf.errors import LabelMismatchError

NAMES = ["entailment", "neutral", "contradiction"]


def mapping(ours, theirs):
    return label_mapping(ours, theirs, dataset="mnli", model="teacher")


@given(st.permutations(NAMES))
def test_mapping_follows_names_not_positions(model_names):
    assert [model_names[i] for i in mapping(NAMES, model_names)] == NAMES


def test_spelling_does_not_matter(caplog):
    assert mapping(["not_entailment", "entailment"], ["Entailment", "NOT-Entailment"]) == [1, 0]
    assert mapping(["not entailment", "x"], ["NOT_ENTAILMENT", "X"]) == [0, 1]
    assert not caplog.records


def test_names_that_differ_in_spelling_alone_are_matched_as_they_are():
    assert mapping(["a", "A"], ["a", "A"]) == [0, 1]
    assert mapping(["a", "A", "b"], ["b", "A", "a"]) == [2, 1, 0]
    check_same_labels(["a", "A"], ["A", "a"], ["A", "a"])
    with pytest.raises(LabelMismatchError, match="in the same order"):
        check_same_labels(["a", "A"], ["a", "A"], ["A", "a"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NAMES, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["0", "1"], ["negative", "positive"]),
        (["0", "1"], ["LABEL_0", "LABEL_1"]),
        (NAMES, ["0", "1", "2"]),
    ],
)
def test_placeholder_names_mean_identity_with_a_warning(ours, theirs, caplog):
    assert mapping(ours, theirs) == list(range(len(ours)))
    assert "assuming that their positions agree" in caplog.text


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NAMES, ["LABEL_0", "LABEL_1"]),
        (NAMES, ["LABEL_1", "LABEL_0", "LABEL_2"]),
        (["negative", "positive"], ["bad", "good"]),
        (["1", "2"], ["negative", "positive"]),
        (["a", "A"], ["a", "B"]),
        (["a", "A"], ["a ", "A "]),
        (NAMES, NAMES[:2]),
    ],
)
def test_other_names_are_refused(ours, theirs):
    with pytest.raises(LabelMismatchError, match=r"dataset mnli has the labels .* but model teacher has") as caught:
        mapping(ours, theirs)
    assert str(ours) in str(caught.value)
    assert str(theirs) in str(caught.value)


def test_align_labels_remaps_only_the_labels():
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    aligned = align_labels(dataset, [2, 0, 1])
    assert aligned.to_dict() == {"text": ["a", "b", "c"], "label": [2, 0, 1]}
    assert aligned.features == dataset.features
    assert dataset["label"][:] == [0, 1, 2]
    assert align_labels(dataset, [0, 1, 2]) is dataset


def test_align_labels_leaves_rows_without_a_label_alone():
    assert align_labels(Dataset.from_dict({"label": [-100, 1, 0, -100]}), [1, 0])["label"][:] == [-100, 0, 1, -100]


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=1))
def test_align_labels_is_undone_by_the_inverse(order, labels):
    dataset = Dataset.from_dict({"label": labels})
    inverse = [order.index(i) for i in range(4)]
    assert align_labels(align_labels(dataset, order), inverse)["label"][:] == labels


def test_teacher_and_student_may_order_the_classes_unlike_the_dataset():
    check_same_labels(NAMES, NAMES[::-1], [name.upper() for name in NAMES[::-1]])
    check_same_labels(NAMES, ["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_0", "LABEL_1", "LABEL_2"])


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (["a", "b"], ["a", "b"], "the labels differ"),
        (NAMES, NAMES[::-1], "in the same order"),
        (NAMES, NAMES[:2], "in the same order"),
    ],
)
def test_different_classes_of_teacher_or_student_are_refused(teacher, student, message):
    with pytest.raises(LabelMismatchError, match=message) as caught:
        check_same_labels(NAMES, teacher, student)
    assert all(str(names) in str(caught.value) for names in (NAMES, teacher, student))
