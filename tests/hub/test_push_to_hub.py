"""transformers' own ways to publish a model take the code along too."""

import pytest
import transformers
from hub_server import TOKEN
from transformers import AutoModelForSequenceClassification

import lma_hf
from lma_hf.modeling.saving_lma import code_files

# huggingface_hub 2.4 itself uploads in a way that its HTTP library would rather not see
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "tester/student"
CODE = {file.name for file in code_files()}


@pytest.fixture(autouse=True)
def no_client_of_another_hub(monkeypatch):
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


@pytest.fixture
def model(student_dir):
    return AutoModelForSequenceClassification.from_pretrained(student_dir)


def files(hub):
    return set(hub.model(REPO).head("main").files)


def test_push_to_hub(in_process, model):
    model.push_to_hub(REPO, private=True, token=TOKEN)
    assert files(in_process) >= {*CODE, "config.json", "model.safetensors"}
    assert in_process.model(REPO).private


def test_save_pretrained_that_pushes(in_process, model, tmp_path):
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=REPO, token=TOKEN, commit_message="a student")
    assert files(in_process) >= {*CODE, "config.json", "model.safetensors"}
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= CODE
    assert "a student" in [commit.title for commit in in_process.model(REPO).history()]


def test_a_restored_model_brings_no_code(in_process, model):
    lma_hf.restore_activations_(model)
    model.push_to_hub(REPO, token=TOKEN)
    assert not files(in_process) & CODE
