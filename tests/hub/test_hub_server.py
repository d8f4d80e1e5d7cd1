"""The local hub answers huggingface_hub and datasets as the real one does, and fails when it is told to."""

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CARD = b"---\nconfigs:\n- config_name: rte\n  data_files:\n  - {split: validation, path: rte/validation-*}\n---\n"


@pytest.fixture
def api(in_process):
    return HfApi(endpoint=in_process.url, token=in_process.token)


@pytest.fixture
def repo(in_process):
    files = {"a.txt": b"0123456789", "b/c.txt": b"c", "b/d/e.txt": b"e", "w.safetensors": b"weights"}
    return in_process.add_repo("tester/m", files, private=True)


def test_commits_branches_and_history(api, in_process):
    assert api.whoami()["name"] == "tester"
    api.create_repo("tester/new", private=True)
    api.create_repo("tester/new", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("tester/new")
    api.create_branch("tester/new", branch="dev")
    additions = {"model.bin": b"weights" * 100, "README.md": b"---\nlicense: mit\n---\n", "a/b.txt": b"b"}
    first = api.create_commit(
        "tester/new",
        [CommitOperationAdd(path, content) for path, content in additions.items()],
        commit_message="first",
        commit_description="why",
        revision="dev",
    )
    api.create_commit("tester/new", [CommitOperationDelete("a/")], commit_message="second", revision="dev")
    repo = in_process.model("tester/new")
    assert [commit.title for commit in repo.history("dev")] == ["second", "first", "initial commit"]
    assert repo.head(first.oid).files == {**additions, ".gitattributes": repo.head().files[".gitattributes"]}
    assert repo.head(first.oid).description == "why"
    assert "a/b.txt" not in repo.head("dev").files
    assert {branch.name for branch in api.list_repo_refs("tester/new").branches} == {"main", "dev"}


def test_commit_is_whole_or_not_at_all(api, in_process, repo):
    head = repo.head()
    wrong = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("nothing.txt")]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit("tester/m", wrong, commit_message="wrong")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("tester/m", wrong[:1], commit_message="late", parent_commit="0" * 40)
    assert repo.head() == head


def test_what_is_read_is_what_was_written(api, in_process, repo, tmp_path):
    in_process.page_size = 2
    info = api.repo_info("tester/m", files_metadata=True)
    assert info.private
    assert info.sha == repo.head().oid
    assert {file.rfilename for file in info.siblings} == set(repo.head().files)
    assert {entry.path for entry in api.list_repo_tree("tester/m", recursive=True)} >= {"b", "b/d", "b/d/e.txt"}
    assert [entry.path for entry in api.list_repo_tree("tester/m", "b")] == ["b/d", "b/c.txt"]
    found = api.get_paths_info("tester/m", ["b", "w.safetensors", "none"])
    assert [(entry.path, getattr(entry, "lfs", None) is not None) for entry in found] == [
        ("b", False),
        ("w.safetensors", True),
    ]
    folder = Path(api.snapshot_download("tester/m", local_dir=tmp_path / "copy"))
    assert {path: (folder / path).read_bytes() for path in repo.head().files} == repo.head().files


def test_ranges(in_process, repo):
    url = f"{in_process.url}/tester/m/resolve/main/a.txt"
    for wanted, status, content in (
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=20-", 416, b""),
        ("lines=1", 200, b"0123456789"),
    ):
        headers = {"Range": wanted, "Authorization": f"Bearer {in_process.token}"}
        answer = get_session().get(url, headers=headers)
        assert (answer.status_code, answer.content) == (status, content)


def test_refusals_are_those_that_the_client_knows(api, in_process, repo):
    stranger, impostor = HfApi(in_process.url, token=False), HfApi(in_process.url, token="hf_wrong")
    for error, call in (
        (RepositoryNotFoundError, lambda: api.repo_info("tester/none")),
        (RepositoryNotFoundError, lambda: stranger.repo_info("tester/m")),
        (RevisionNotFoundError, lambda: api.repo_info("tester/m", revision="none")),
        (RemoteEntryNotFoundError, lambda: api.hf_hub_download("tester/m", "none.txt")),
    ):
        with pytest.raises(error):
            call()
    for call in (
        lambda: impostor.repo_info("tester/m"),
        lambda: impostor.create_repo("tester/other"),
        lambda: stranger.create_repo("tester/other"),
    ):
        with pytest.raises(HfHubHTTPError, match="401"):
            call()
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("somebody/else")
    assert list(in_process.repos) == [("model", "tester/m")]


def test_cards_are_validated(in_process):
    ModelCard("---\nlicense: mit\n---\n# Good\n").validate()
    with pytest.raises(ValueError, match="Invalid metadata"):
        HfApi(in_process.url)._validate_yaml("---\na: [\n---\n# Bad\n")


def test_faults_hit_what_they_are_meant_for(api, in_process, repo):
    in_process.fail(500, method="GET", path="models/tester", nth=2, times=1)
    in_process.fail("cut", path="whoami")
    api.repo_info("tester/m")
    with pytest.raises(HfHubHTTPError, match="500"):
        api.repo_info("tester/m")
    api.repo_info("tester/m")
    for _ in range(2):
        with pytest.raises(Exception, match=r"peer closed|disconnected|incomplete"):
            api.whoami()
    in_process.recover()
    assert in_process.requests == []
    api.whoami()
    assert in_process.requests[-1] == ("GET", "/api/whoami-v2", 200)
    with pytest.raises(ValueError, match="allowed are a status and hang, cut, lose"):
        in_process.fail("explode")


def test_download_that_is_cut_is_tried_again(api, in_process, repo, tmp_path):
    in_process.fail("cut", method="GET", path="/resolve/", times=1)
    file = Path(api.hf_hub_download("tester/m", "a.txt", local_dir=tmp_path))
    assert file.read_bytes() == b"0123456789"
    assert [entry.status for entry in in_process.requests if entry.method == "GET"][-2:] == [0, 200]


def test_datasets_load(hub, run_client):
    table = io.BytesIO()
    pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}).to_parquet(table)
    hub.add_repo("tester/csv", {"train.csv": b"text,label\ngood,1\nbad,0\n"}, "dataset", private=True)
    files = {"rte/validation-00000.parquet": table.getvalue(), "README.md": CARD}
    hub.add_repo("tester/parquet", files, "dataset", private=True)
    assert run_client(HERE / "load_datasets.py") == "loaded\n"


def test_the_server_is_a_tool_of_its_own():
    command = [sys.executable, HERE.parent / "hub_server.py", "--token", "hf_mine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            settings = dict(word.split("=") for word in process.stdout.readline().split()[1:])
            assert HfApi(settings["HF_ENDPOINT"], token=settings["HF_TOKEN"]).whoami()["name"] == "tester"
        finally:
            process.terminate()
