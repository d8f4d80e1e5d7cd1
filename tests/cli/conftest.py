"""A tiny world for the commands: a random BERT, a separable text task as a folder of jsonl, a fine-tuned teacher."""

import json
import random

import pytest
import torch
from cli.students import DISTILL
from transformers import BertConfig, BertModel

from lma_hf.cli.__main__ import main

GOOD, BAD = ("good", "great", "best"), ("bad", "worst", "boring")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_rows(count, seed):
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.random() < 0.6
        words = [draw.choice(("the", "a", "film", "is", "was")) for _ in range(draw.randint(2, 9))]
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label else BAD))
        rows.append({"text": " ".join(words), "label": "fresh" if label else "rotten"})
    return rows


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", make_rows(320, 0))
    write_rows(folder / "validation.jsonl", make_rows(60, 1))
    return folder


@pytest.fixture(scope="session")
def pretrained_dir(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_flags(data_dir):
    return ["--dataset", str(data_dir), "--text_columns", "text", "--max_length", "32"]


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory, pretrained_dir, data_flags):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--model_name_or_path", str(pretrained_dir), "--output_dir", str(folder)]
    flags += ["--learning_rate", "2e-3", "--num_train_epochs", "4", "--per_device_train_batch_size", "16"]
    assert main(["teach", *data_flags, *flags]) == 0
    return folder


@pytest.fixture(scope="session")
def distilled(tmp_path_factory, data_flags, teacher_dir):
    """Run `distill` with more flags; returns its folder. The same flags are run once."""
    folders = {}

    def distill(*flags):
        if flags not in folders:
            folders[flags] = tmp_path_factory.mktemp("student") / "run"
            base = [*data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folders[flags]), *DISTILL]
            assert main(["distill", *base, *flags]) == 0
        return folders[flags]

    return distill
