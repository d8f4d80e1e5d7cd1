"""What `lma-hf push` refuses before it asks the hub for anything, and what it says when the hub refuses."""

import json
import shutil

import pytest
import torch
from hub_server import TOKEN
from safetensors.torch import load_file, save_file

from lma_hf import PushConfig, push_student
from lma_hf.cli import push
from lma_hf.cli.__main__ import main
from lma_hf.errors import ConfigError, PushRefusedError
from lma_hf.hub.check import check_no_token
from lma_hf.hub.stage import check_same_weights, same_bits, stage

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "tester/student"


@pytest.fixture
def run_dir(student_dir, tmp_path):
    """A copy of the student's folder that may be spoilt."""
    return shutil.copytree(student_dir, tmp_path / "run")


@pytest.fixture
def fails(in_process, run_dir, capsys):
    """Run the command, check the exit code, and return the one line it prints."""

    def run(*flags, code=2, token=TOKEN, sent=False):
        base = ["push", "--model_dir", str(run_dir), "--repo_id", REPO, "--token", token]
        capsys.readouterr()
        assert main([*base, *flags]) == code
        output = capsys.readouterr()
        errors = [line for line in output.err.splitlines() if line.startswith("lma-hf: error: ")]
        assert len(errors) == 1
        assert token not in output.out + output.err
        assert bool(in_process.requests) == sent
        assert in_process.repos == {}
        return errors[0]

    return run


@pytest.fixture
def unchecked(monkeypatch):
    """Without the load in a process of its own, which takes seconds."""
    monkeypatch.setattr(push, "check_reload", lambda *args: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(fails, run_dir, value):
    weights = load_file(run_dir / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    weights[name][3, 4] = value
    save_file(weights, run_dir / "model.safetensors", metadata={"format": "pt"})
    message = fails()
    assert f"tensor {name} in {run_dir / 'model.safetensors'} holds NaN or infinity" in message


@pytest.mark.parametrize(
    "name", ["results.json", "run_config.yaml", "environment.json", "tokenizer_config.json", "config.json"]
)
def test_a_folder_that_lacks_a_file(fails, run_dir, name):
    (run_dir / name).unlink()
    assert f"holds no {name}" in fails()


def test_weights_that_are_missing_or_damaged(fails, run_dir):
    (run_dir / "model.safetensors").write_bytes(b"not a model")
    assert "model.safetensors cannot be read" in fails()
    (run_dir / "model.safetensors").unlink()
    assert "no *.safetensors" in fails()


def test_a_model_without_its_head(fails, run_dir):
    weights = load_file(run_dir / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, run_dir / "model.safetensors", metadata={"format": "pt"})
    assert "missing keys classifier.weight" in fails()


def test_damaged_records(fails, run_dir):
    (run_dir / "results.json").write_text("{")
    assert "cannot be read" in fails()


def test_misuse(fails, run_dir, in_process):
    assert "is no folder" in fails("--model_dir", str(run_dir / "nowhere"))
    assert "repo_id 'a/b/c'" in fails("--repo_id", "a/b/c")
    assert "commit_message is empty" in fails("--commit_message", " ")
    with pytest.raises(ConfigError, match="hf auth login"):
        push_student(run_dir, REPO)
    assert in_process.requests == []


def spoil(monkeypatch, name, before, after):
    """Let staged folders differ from the model that they are of."""

    def stage_spoilt(model_dir, folder):
        loaded = stage(model_dir, folder)
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))
        return loaded

    monkeypatch.setattr(push, "stage", stage_spoilt)


def test_a_model_that_computes_something_else_without_lma_hf(fails, monkeypatch):
    spoil(
        monkeypatch, "reference_lma.py", "        if values is not result:", "        values *= 1.00001\n        if 1:"
    )
    message = fails()
    assert "does not reload: 'text 0, logits' differs by up to" in message


@pytest.mark.extended
def test_a_model_that_does_not_load_without_lma_hf(fails, monkeypatch):
    spoil(monkeypatch, "modeling_lma.py", "from torch import nn", "import lma_hf\nfrom torch import nn")
    assert "does not load without lma_hf: " in fails()


def test_dry_run_sends_nothing_and_leaves_the_folder_alone(in_process, run_dir, capsys):
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    assert push_student(run_dir, REPO, dry_run=True) is None
    printed = capsys.readouterr().out
    for name in ("README.md", "activation_curves.png", "config.json", "model.safetensors", "modeling_lma.py"):
        assert name in printed
    size = (run_dir / "model.safetensors").stat().st_size
    assert f"{size:,} bytes" in printed
    assert "nothing was sent" in printed
    assert in_process.requests == []
    assert before == {path.name: path.read_bytes() for path in run_dir.iterdir()}


def test_a_card_of_ones_own_revision_and_message(in_process, run_dir, unchecked, capsys):
    (run_dir / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (run_dir / "activation_curves.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="is pushed as the card, so license would have no effect"):
        push_student(run_dir, REPO, token=TOKEN, license="mit")
    (run_dir / "secret.txt").write_text("not for the hub")
    (run_dir / "checkpoint-10").mkdir()
    (run_dir / "checkpoint-10" / "optimizer.pt").write_bytes(b"large")
    pushed = push_student(run_dir, REPO, token=TOKEN, revision="v2", commit_message="Second", private=False)
    commit = in_process.model(REPO).head("v2")
    assert (commit.oid, commit.title) == (pushed.commit, "Second")
    for name in ("README.md", "activation_curves.png"):
        assert commit.files[name] == (run_dir / name).read_bytes()
    assert not {"secret.txt", "checkpoint-10/optimizer.pt"} & set(commit.files)
    assert set(in_process.model(REPO).head().files) == {".gitattributes"}
    assert 'revision="v2", trust_remote_code=True)' in capsys.readouterr().out


def test_a_wrong_token_is_told_what_to_do(fails, unchecked):
    message = fails("--with_latency", "false", code=1, token="hf_" + "wrong" * 7, sent=True)
    assert message.startswith("lma-hf: error: push failed at creating tester/student: status 401, ")
    assert "`hf auth login` or set HF_TOKEN" in message


def test_settings_do_not_show_the_token():
    assert TOKEN not in repr(PushConfig(model_dir="run", repo_id=REPO, token=TOKEN))


def test_tokens_in_files_are_found(tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps({"who": "hf_" + "a1B2" * 8}))
    with pytest.raises(PushRefusedError, match=r"notes\.json holds an access token") as caught:
        check_no_token(tmp_path)
    assert "a1B2" not in str(caught.value)
    (tmp_path / "notes.json").write_text("a token of another kind: other-secret")
    check_no_token(tmp_path)
    with pytest.raises(PushRefusedError):
        check_no_token(tmp_path, "other-secret")


def test_weights_are_compared_bit_by_bit(tmp_path):
    zeros = torch.zeros(3)
    assert same_bits(zeros, torch.zeros(3))
    for other in (-zeros, zeros.double(), torch.zeros(3, 1), None):
        assert not same_bits(zeros, other)
    for name, weights in (("a", {"x": zeros}), ("b", {"x": zeros, "y": zeros})):
        (tmp_path / name).mkdir()
        save_file({key: value.clone() for key, value in weights.items()}, tmp_path / name / "model.safetensors")
    check_same_weights(tmp_path / "a", tmp_path / "a")
    with pytest.raises(PushRefusedError, match=r"changes the weights y \(1 in all\)"):
        check_same_weights(tmp_path / "a", tmp_path / "b")
