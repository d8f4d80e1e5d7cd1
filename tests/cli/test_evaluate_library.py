"""`evaluate.evaluator("text-classification")` on a saved student, without the network."""

import socket

import pytest
from datasets import Dataset
from evaluate import evaluator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lma_hf
from lma_hf.data.metrics import Accuracy


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory, teacher_dir):
    folder = tmp_path_factory.mktemp("student")
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    lma_hf.build_student(teacher, num_layers=2, activation=lma_hf.LMAConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("given", ["folder", "model"])
def test_accuracy_is_that_of_our_command(student_dir, data_dir, given):
    model = AutoModelForSequenceClassification.from_pretrained(student_dir)
    subject = {"model_or_pipeline": str(student_dir)}
    if given == "model":
        subject = {"model_or_pipeline": model, "tokenizer": AutoTokenizer.from_pretrained(student_dir)}
    data = Dataset.from_json(str(data_dir / "validation.jsonl"))
    data = data.map(lambda row: {"label": model.config.label2id[row["label"]]})
    found = evaluator("text-classification").compute(
        **subject, data=data, metric=Accuracy(), label_mapping=model.config.label2id
    )
    ours = lma_hf.evaluate(student_dir, dataset=str(data_dir), text_columns=["text"], max_length=32)
    assert found["accuracy"] == ours["validation"]["accuracy"]
    assert 0 < found["accuracy"] < 1
