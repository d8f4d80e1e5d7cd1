"""One commit or nothing, whatever the hub does; and a token that shows up nowhere."""

import time
import traceback

import huggingface_hub
import pytest
from hub_api import Answer, refusal
from hub_server import TOKEN

from lma_hf.errors import ConfigError, PushError
from lma_hf.hub.push import check_repo_id, find_token, push_folder

# huggingface_hub 2.4 itself uploads in a way that its HTTP library would rather not see
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "tester/student"
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# Student\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 8,
    "curves.png": b"\x89PNG" * 40,
}
THEIRS = {"notes.md": b"mine", "requirements.txt": b"mine"}
OLD = {
    "config.json": b"old",
    "model-00001-of-00002.safetensors": b"old",
    "old_lma.py": b"old",
    **THEIRS,
}
# what huggingface_hub asks once a day is no part of a push
OURS = r"^(?!/api/agent-harnesses)"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "staged"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def files_of(repo, branch="main"):
    """What a branch holds, without what the hub itself puts there."""
    return {path: content for path, content in repo.head(branch).files.items() if path != ".gitattributes"}


def requests_of(hub):
    return [(entry.method, entry.path) for entry in hub.requests if "agent-harnesses" not in entry.path]


def push(hub, folder, **options):
    return push_folder(folder, REPO, token=hub.token, timeout_s=options.pop("timeout_s", 5), **options)


def test_one_commit_to_a_new_private_repository(in_process, folder):
    pushed = push(in_process, folder)
    repo = in_process.model(REPO)
    assert files_of(repo) == FILES
    assert len(repo.history()) == 2
    assert repo.private
    assert pushed == (REPO, f"{in_process.url}/{REPO}", "main", repo.head().oid, True)
    assert sum("/commit/" in path for _, path in requests_of(in_process)) == 1


def test_revision_message_and_namespace(in_process, folder):
    pushed = push_folder(
        folder, "student", token=in_process.token, private=False, revision="v2", commit_message="Second try"
    )
    repo = in_process.model(REPO)
    assert pushed.repo_id == REPO
    assert not pushed.private
    assert files_of(repo) == {}
    assert files_of(repo, "v2") == FILES
    assert repo.head("v2").title == "Second try"


def test_same_content_again_makes_no_commit(in_process, folder):
    assert push(in_process, folder) == push(in_process, folder)
    assert len(in_process.model(REPO).history()) == 2


def test_files_that_a_load_would_find_are_replaced_and_others_stay(in_process, folder):
    repo = in_process.add_repo(REPO, {**OLD, "onnx/model.onnx": b"mine", ".gitignore": b"*.safetensors\n"})
    assert not push(in_process, folder).private
    kept = {**THEIRS, "onnx/model.onnx": b"mine", ".gitignore": b"*.safetensors\n"}
    assert files_of(repo) == {**FILES, **kept}
    assert len(repo.history()) == 3


@pytest.mark.parametrize("how", [500, 401, "cut", "lose", "hang"])
def test_a_hub_that_fails_from_any_request_on_keeps_old_or_new(in_process, folder, how, caplog, capsys):
    """Every request in turn fails, and all that follow."""
    waits = {"waits_s": (0,), "timeout_s": 0.05 if how == "hang" else 5}
    outcomes = []
    for nth in range(1, 30):
        in_process.recover()
        repo = in_process.add_repo(REPO, OLD)
        repo.add_branch("dev")
        in_process.fail(how, path=OURS, nth=nth)
        try:
            push(in_process, folder, revision="dev", **waits)
        except PushError as error:
            check_silent(error)
        state = files_of(repo, "dev")
        assert state in (OLD, {**FILES, **THEIRS})
        assert len(repo.history("dev")) == (2 if state == OLD else 3)
        assert files_of(repo) == OLD
        outcomes.append(state != OLD)
        if not any(entry.status in (0, how) for entry in in_process.requests):
            break
    # the commit is the last request: it alone makes a difference, and its answer may be lost
    assert nth > 9
    assert sum(outcomes) == (2 if how == "lose" else 1)
    assert in_process.token not in caplog.text + str(capsys.readouterr())


def check_silent(error, token=TOKEN):
    """The error says one line, and shows no token, not even in its traceback."""
    assert "\n" not in str(error)
    assert token not in "".join(traceback.format_exception(error))
    assert str(error).startswith("push failed at ")


@pytest.mark.parametrize("how", [429, 503, "cut", "lose", "hang"])
def test_a_hub_that_fails_once_gets_all_in_one_commit(in_process, folder, how):
    for nth in range(1, 30):
        in_process.recover()
        repo = in_process.add_repo(REPO, OLD)
        in_process.fail(how, path=OURS, nth=nth, times=1)
        pushed = push(in_process, folder, timeout_s=0.3 if how == "hang" else 5)
        assert files_of(repo) == {**FILES, **THEIRS}
        assert [commit.title for commit in repo.history()] == ["Upload model with lma_hf", "files", "initial commit"]
        assert pushed.commit == repo.head().oid
        if not any(entry.status in (0, how) for entry in in_process.requests):
            break
    assert nth > 9


def test_new_repository_stays_empty_when_its_commit_fails(in_process, folder):
    in_process.fail(500, path="/commit/")
    with pytest.raises(PushError, match=r"^push failed at committing to tester/student: status 500.*a new repository"):
        push(in_process, folder)
    assert files_of(in_process.model(REPO)) == {}


def test_somebody_elses_commit_is_not_overwritten(in_process, folder, monkeypatch):
    repo = in_process.add_repo(REPO, OLD)
    upload = huggingface_hub.HfApi.preupload_lfs_files

    def upload_while_another_commits(*args, **kwargs):
        upload(*args, **kwargs)
        repo.add_commit("main", {"config.json": b"another's"}, "another")

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", upload_while_another_commits)
    with pytest.raises(PushError, match="changed meanwhile; run the push again"):
        push(in_process, folder)
    assert files_of(repo) == {"config.json": b"another's"}
    # nor where it is noticed only at another try, after the commit request got no answer
    in_process.fail("cut", path="/commit/", times=1)
    with pytest.raises(PushError, match="changed meanwhile; run the push again"):
        push(in_process, folder)
    assert files_of(repo) == {"config.json": b"another's"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_says_what_to_do_at_once(in_process, folder, status):
    if status == 401:
        in_process.token = "hf_another"
    else:
        in_process.fail(403)
    advice = {401: r"hf auth login` or set HF_TOKEN", 403: "write access"}[status]
    token = "hf_" + "wrong" * 7
    with pytest.raises(PushError, match=advice) as caught:
        push_folder(folder, REPO, token=token)
    check_silent(caught.value, token)
    assert caught.value.exit_code == 1
    assert "tester/student" in str(caught.value)
    assert in_process.repos == {}
    assert len([entry for entry in in_process.requests if entry.method == "POST"]) == 1


def test_a_hub_that_repeats_the_token_does_not_make_us_say_it(in_process, folder, caplog, monkeypatch):
    monkeypatch.setattr("hub_server.refusal", lambda status, _: refusal(status, f"who is {in_process.token}?"))
    in_process.fail(503)
    with pytest.raises(PushError, match=r"who is \*\*\*\?") as caught:
        push(in_process, folder)
    check_silent(caught.value)
    assert "who is ***?" in caplog.text
    assert in_process.token not in caplog.text


def test_the_hub_is_obeyed_when_it_asks_to_wait(in_process, folder, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr("hub_server.refusal", lambda status, _: Answer(b"", status, {"Retry-After": "7"}))
    in_process.fail(429, path="create", times=1)
    in_process.fail(429, path="/commit/", times=1)
    push(in_process, folder)
    assert waited == [7, 7]


def test_where_the_token_comes_from(in_process, monkeypatch):
    with pytest.raises(ConfigError, match="hf auth login"):
        find_token()
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert find_token() == "hf_environment"
    assert find_token(" hf_argument\n") == "hf_argument"
    for bad in ("hf_two\nlines", "hf_two words", "hf_ümlaut"):
        with pytest.raises(ConfigError, match="copy it again") as caught:
            find_token(bad)
        assert bad[:6] not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b/c", "", "no spaces", "a--b", None])
def test_names_that_no_repository_has(name):
    with pytest.raises(ConfigError, match="repo_id"):
        check_repo_id(name)
