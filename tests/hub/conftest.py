"""A local hub, a tiny student as a run leaves it, and ways to let real clients work against the hub."""

import json
import os
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, HubServer
from transformers import BertConfig, BertForSequenceClassification

import lma_hf
from lma_hf.cli.parser import to_yaml
from lma_hf.compare.profiling import count_parameters, environment
from lma_hf.training.checkpoint import RESULTS, RUN_CONFIG, write_json


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def in_process(hub, monkeypatch, tmp_path):
    """Lets this process's huggingface_hub speak with the hub, and wait for nothing."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


@pytest.fixture
def run_client(hub, tmp_path):
    """Run Python arguments in a process of its own, with an empty cache, whose hub is ours. Returns: its stdout."""

    def run(*arguments, code=0, token=TOKEN):
        cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
        cache.mkdir()
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        env |= {"HF_TOKEN": token} if token else {}
        result = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=cache)
        assert result.returncode == code, result.stderr
        assert TOKEN not in result.stdout + result.stderr
        return result.stdout if code == 0 else result.stderr

    return run


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory, tiny_tokenizer):
    """A folder as `lma-hf distill` leaves it, with a teacher that is elsewhere by now."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    model = tiny_student(len(tiny_tokenizer))
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    data = tmp_path_factory.mktemp("my data")
    rows = [{"text": f"a {word} film", "label": word} for word in ("good", "bad")] * 2
    (data / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = lma_hf.DistillConfig(
        teacher="/home/someone/my runs/teacher",
        dataset=str(data),
        text_columns=["text"],
        label_names=["bad", "good"],
        output_dir=str(folder),
    )
    to_yaml(config, folder / RUN_CONFIG, f"lma-hf distill {folder / RUN_CONFIG} --output_dir ANOTHER_FOLDER")
    write_json(results_of(model, config), folder / RESULTS)
    write_json(environment(), folder / "environment.json")
    return folder


def tiny_student(vocab_size):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=512,
        initializer_range=0.3,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    model = BertForSequenceClassification(config)
    lma_hf.swap_activations_(model, lma_hf.LMAConfig(init="fit", per_channel=True, statistics="running"))
    ids = torch.randint(5, vocab_size, (16, 20))
    lma_hf.calibrate_(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    return model


def results_of(model, config):
    scores = {"validation": {"accuracy": 0.75}}
    return {
        "task": "my data",
        "best_metric": "accuracy",
        "metrics": scores,
        "num_parameters": count_parameters(model),
        "size_mb": 0.1,
        "training": {"num_steps": 10, "train_seconds": 1.5, "best_step": 10, "best_score": 0.75},
        "num_processes": 1,
        "activation": {"name": "lma", "num_segments": 8},
        "layer_map": [1, 3],
        "teacher": {"name": config.teacher, "metrics": scores},
    }
