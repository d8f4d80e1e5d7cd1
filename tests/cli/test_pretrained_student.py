"""`distill --student_name_or_path`: a student that is pretrained, also with a tokenizer of its own."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
)

from lma_hf.cli.__main__ import main

STEPS = ["--max_steps", "6", "--logging_steps", "1", "--calibration_batches", "2", "--learning_rate", "2e-3"]
STEPS += ["--per_device_train_batch_size", "16", "--activation", "gelu"]


@pytest.fixture
def distill(tmp_path, data_flags, teacher_dir, capsys):
    """Run `distill`; returns results.json, or where another exit code is expected the error."""

    def run(name, *flags, code=0):
        folder = tmp_path / name
        base = [*data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folder), *STEPS]
        assert main(["distill", *base, *map(str, flags)]) == code
        return json.loads((folder / "results.json").read_text()) if code == 0 else capsys.readouterr().err

    return run


@pytest.fixture
def renumbered_dir(tmp_path, teacher_dir):
    """The teacher with its vocabulary in another order, and its embeddings to match."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    model = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "renumbered"
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(embeddings[order].clone())
    model.config.pad_token_id = int((order == tokenizer.pad_token_id).nonzero())
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={words[index]: number for number, index in enumerate(order)}).save_pretrained(folder)
    return folder


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["task_loss"], line["distill_loss"]) for line in lines if "loss" in line]


def test_the_teacher_as_its_own_student_is_the_student_with_all_its_layers(tmp_path, distill, teacher_dir):
    distill("built", "--num_layers", 4)
    results = distill("pretrained", "--student_name_or_path", teacher_dir)
    assert losses(tmp_path / "pretrained") == losses(tmp_path / "built")
    built, pretrained = (load_file(tmp_path / name / "model.safetensors") for name in ("built", "pretrained"))
    assert built.keys() == pretrained.keys()
    assert all(torch.equal(built[name], pretrained[name]) for name in built)
    assert results["student"] == str(teacher_dir)
    assert results["layer_map"] == []


def test_student_with_renumbered_words_learns_the_same(tmp_path, distill, teacher_dir, renumbered_dir):
    distill("same", "--teacher_cache", tmp_path / "cache", "--student_name_or_path", teacher_dir)
    distill("other", "--teacher_cache", tmp_path / "cache", "--student_name_or_path", renumbered_dir)
    for found, expected in zip(losses(tmp_path / "other"), losses(tmp_path / "same"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    texts = ["the film is great", "a boring film"]
    ids = [AutoTokenizer.from_pretrained(tmp_path / name)(texts)["input_ids"] for name in ("same", "other")]
    assert ids[0] != ids[1]


def test_another_architecture_and_tokenizer(tmp_path, distill, data_flags):
    folder = tmp_path / "distilbert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "good", "great", "best", "bad", "worst"]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32}
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    flags = ["--student_name_or_path", folder, "--teacher_cache", tmp_path / "cache", "--activation", "lma"]
    results = distill("student", *flags, "--max_steps", 120, "--learning_rate", 1e-2)
    # the words that it knows tell most labels
    assert results["metrics"]["validation"]["accuracy"] > 0.8
    file = tmp_path / "score.json"
    command = ["evaluate", *data_flags, "--model_dir", str(tmp_path / "student"), "--output_file", str(file)]
    assert main(command) == 0
    assert json.loads(file.read_text())["validation"] == results["metrics"]["validation"]


def test_another_tokenizer_needs_the_cache(distill, renumbered_dir):
    said = distill("student", "--student_name_or_path", renumbered_dir, code=2)
    assert f"student {str(renumbered_dir)!r} has another tokenizer than teacher" in said
    assert "--teacher_cache" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_layers", "2"),
        ("layer_map", "last"),
        ("intermediate_size", "16"),
        ("hidden_size", "16"),
        ("activation_warmup_steps", "5"),
        ("hidden_loss_weight", "1"),
        ("relation_loss_weight", "1"),
        ("replacement_rate", "0.5"),
    ],
)
def test_what_is_about_the_teachers_layers_is_refused(distill, teacher_dir, option, value):
    said = distill("student", "--student_name_or_path", teacher_dir, f"--{option}", value, code=2)
    assert f"student_name_or_path is {str(teacher_dir)!r}" in said
    assert option in said


def test_a_student_that_was_swapped_before_goes_on_with_its_activations(tmp_path, distill):
    first = ["--activation", "lma", "--num_layers", 2, "--num_segments", 4, "--learning_rate", 0]
    distill("first", *first, "--activation_learning_rate", 1e-2)
    again = ["--student_name_or_path", tmp_path / "first", "--activation", "lma", "--num_segments", 4]
    results = distill("second", *again, "--learning_rate", 0, "--activation_learning_rate", 0)
    assert results["activation"]["num_segments"] == 4
    assert results["calibration"] is None
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    slopes = [name for name in before if name.endswith("slope")]
    assert len(slopes) == 2
    assert all(torch.equal(before[name], after[name]) for name in slopes)
    assert "swapped before, with num_segments 4, but num_segments is 8" in distill("third", *again[:4], code=2)
    assert "swapped before, with activation 'lma', but activation is 'gelu'" in distill("fourth", *again[:2], code=2)
