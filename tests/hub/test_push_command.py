"""`lma-hf push`, and loads of what it has pushed, by real clients in processes of their own."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import TOKEN
from safetensors.torch import load, load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import lma_hf

HERE = Path(__file__).parent
REPO = "tester/student"
CODE = "modeling_lma.py"


@pytest.fixture
def pushed(hub, run_client, student_dir):
    """What the command prints."""
    flags = ["--model_dir", student_dir, "--repo_id", REPO, "--commit-message", "First one", "--license", "mit"]
    return run_client("-m", "lma_hf.cli", "push", *map(str, flags))


def test_push_and_load_everywhere(hub, run_client, student_dir, tmp_path, pushed):
    check_repository(hub, student_dir)
    check_printed(hub, pushed)
    expected = expected_outputs(student_dir)
    hub.requests.clear()
    code = run_client(HERE / "load_without_lma_hf.py", REPO, tmp_path / "without.safetensors")
    assert "modeling_lma" in code.split()
    assert any(entry.path.endswith(CODE) for entry in hub.requests)
    for name, value in load_file(tmp_path / "without.safetensors").items():
        assert torch.equal(value, expected[name]), name
    hub.requests.clear()
    assert run_client(HERE / "load_with_lma_hf.py", REPO, tmp_path / "with.safetensors").strip() == ""
    assert torch.equal(load_file(tmp_path / "with.safetensors")["logits"], expected["logits"])
    assert not any(entry.path.endswith(".py") and entry.status == 200 for entry in hub.requests)


def expected_outputs(student_dir):
    tokenizer = AutoTokenizer.from_pretrained(student_dir)
    batch = tokenizer(["a good film", "the dog , the cat and the car"], padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(student_dir)
    with lma_hf.use_kernel("reference"), torch.inference_mode():
        single = model(**tokenizer(["a good film"], return_tensors="pt")).logits[0]
        outputs = {
            "logits": model(**batch).logits,
            "hidden": AutoModel.from_pretrained(student_dir)(**batch).last_hidden_state,
            "pipeline": single.sort(descending=True).values,
        }
    return outputs


def check_repository(hub, student_dir):
    repo = hub.model(REPO)
    files = repo.head().files
    assert repo.private
    assert [commit.title for commit in repo.history()] == ["First one", "initial commit"]
    expected = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", CODE}
    assert {*expected, "results.json", "run_config.yaml", "environment.json", "activation_curves.png"} <= set(files)
    assert load_file(student_dir / "model.safetensors").keys() == load(files["model.safetensors"]).keys()
    assert b"license: mit" in files["README.md"]
    config = yaml.safe_load(files["run_config.yaml"])
    assert (config["teacher"], config["output_dir"]) == ("teacher", "student")
    assert files["run_config.yaml"].startswith(b"# lma-hf distill run_config.yaml --output_dir ANOTHER_FOLDER\n")
    for path, content in files.items():
        assert TOKEN.encode() not in content, path
        for local in ("/home/someone", str(student_dir.parent), str(Path.home()), str(Path.cwd())):
            assert f"{local}/".encode() not in content, (path, local)


def check_printed(hub, printed):
    commit = hub.model(REPO).head().oid[:8]
    assert f"pushed to {hub.url}/{REPO} (private), branch main, commit {commit}" in printed
    assert len(re.findall(rf'"{REPO}"', printed)) == 3
