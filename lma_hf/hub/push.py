"""A folder to the hub in one commit: all of it arrives, or nothing.

Not `upload_folder`, which makes several commits of a folder where hf_xet is installed.
"""

import fnmatch
import hashlib
import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from lma_hf.errors import ConfigError, LmaHfError, PushError

logger = logging.getLogger(__name__)

WAITS_S = (1, 4, 10)  # before the second, third and fourth try
MAX_WAIT_S = 60  # whatever the hub asks for
TEMPORARY_STATUS = (408, 429, 500, 502, 503, 504)
# What a load of model or tokenizer looks at. Such files of an earlier push must go: old weights beside new ones would
# be loaded. Whatever else somebody has put there (requirements.txt, handler.py) stays.
LOADED_PATTERNS = ("*.safetensors", "*.bin", "*.index.json", "*.model", "*.jinja", "*_lma.py", "*config.json")
LOADED_PATTERNS += ("*token*.json", "vocab.*", "merges.txt")
COMMIT_MESSAGE = "Upload model with lma_hf"
ADVICE = {
    401: "the token is not valid there; make one with write access, then run `hf auth login` or set HF_TOKEN",
    403: "the token may not write there; use one with write access to this repository",
    404: "the repository is not there or the token may not see it; check the repo_id",
    412: "the repository has changed meanwhile; run the push again",
}


class Pushed(NamedTuple):
    """Where a push has landed."""

    repo_id: str
    url: str
    revision: str
    commit: str
    private: bool


def find_token(token=None):
    """The token to push with: the given one, HF_TOKEN's, or that of the saved login.

    Raises: ConfigError if there is none, or none that can be one; the message does not show it.
    """
    token = (token or get_token() or "").strip()
    if not token:
        raise ConfigError("there is no token for the hub; run `hf auth login`, set HF_TOKEN or pass --token")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("the token holds spaces or characters that no token has; copy it again")
    return token


def check_repo_id(repo_id):
    """Raises: ConfigError if it is no name that a repository can have."""
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError as error:
        raise ConfigError(f"repo_id {repo_id!r} is not user/name or organization/name: {error}") from error


def list_files(folder):
    """Path in the repository -> file, for all files in the folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def push_folder(
    folder, repo_id, *, token, private=True, revision=None, commit_message=None, timeout_s=120, waits_s=WAITS_S
):
    """Create the repository and the branch if they are missing, and commit the folder; an existing one stays as
    public or private as it is.

    Args:
        token: from `find_token`; it goes nowhere but to the hub. revision: branch; None: main.
        timeout_s: seconds without any sign of the hub that count as a failure.
        waits_s: pauses before another try, after what may pass: timeouts, cut connections, status 429 and 5xx.
    Returns: `Pushed`.
    Raises: ConfigError, PushError. After an error the branch holds what it held before, or all of the folder.
    """
    check_repo_id(repo_id)
    session = _Session(HfApi(token=token, library_name="lma_hf"), token, timeout_s, waits_s)
    url = session.attempt(f"creating {repo_id}", lambda api: api.create_repo(repo_id, private=private, exist_ok=True))
    repo_id, revision = url.repo_id, revision or "main"
    if revision != "main":
        session.attempt(
            f"creating the branch {revision}", lambda api: api.create_branch(repo_id, branch=revision, exist_ok=True)
        )
    commit = _Commit(session, repo_id, revision, list_files(folder), commit_message or COMMIT_MESSAGE)
    oid = session.attempt(f"committing to {repo_id}", commit)
    return Pushed(repo_id, str(url), revision, oid, commit.private)


class _Session:
    """Calls the hub with patience, and says in one line without the token what went wrong in the end."""

    def __init__(self, api, token, timeout_s, waits_s):
        self.api, self.token, self.timeout_s, self.waits_s = api, token, timeout_s, waits_s

    def attempt(self, what, step):
        """step(api), again after the pauses if what went wrong may pass. Raises: PushError."""
        for wait in (*self.waits_s, None):
            try:
                with _timeout(self.timeout_s):
                    return step(self.api)
            except LmaHfError:
                raise
            except Exception as error:  # the client passes on whatever its layers raise
                # without the chain: it may show more than our line does
                if wait is None or not _may_pass(error):
                    raise self.failure(what, error) from None
                logger.warning("%s: %s; trying again", what, self.describe(error))
                time.sleep(max(wait, _wait_asked_for(error)))

    def failure(self, what, error):
        """The `PushError` that says what went wrong."""
        return PushError(
            f"push failed at {what}: {self.describe(error)}; the hub holds what it held before (a new repository: "
            "nothing) or, if its answer was lost, all of this push"
        )

    def describe(self, error):
        """An error in a line, without the token."""
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        status = _status(cause)
        text = ADVICE.get(status) or getattr(cause, "server_message", None) or str(cause) or "no answer"
        name = f"status {status}" if status else type(cause).__name__
        return f"{name}, {' '.join(text.split())}".replace(self.token, "***")


@contextmanager
def _timeout(seconds):
    """Within the context the client waits no longer for an answer; by itself it waits for ever."""
    client = get_session()
    before, client.timeout = client.timeout, seconds
    try:
        yield
    finally:
        client.timeout = before


class _Commit:
    """One commit of files, which can be called again after a failure. Returns: the commit's oid."""

    def __init__(self, session, repo_id, revision, files, message):
        self.session, self.repo_id, self.revision = session, repo_id, revision
        self.files, self.message = files, message
        self.parent = self.private = None

    def __call__(self, api):
        # this one call of the client's has a timeout of its own, which is none
        timeout_s = self.session.timeout_s
        info = api.repo_info(self.repo_id, revision=self.revision, files_metadata=True, timeout=timeout_s)
        self.private, self.parent = info.private, self.parent or info.sha
        present = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}
        if info.sha != self.parent:
            # either our own commit, whose answer was lost, or somebody else's
            return self._check_own(info.sha, present)
        additions = [CommitOperationAdd(path, str(file)) for path, file in self.files.items()]
        self._upload(api, additions)
        gone = [path for path in present if "/" not in path and path not in self.files and _is_loaded(path)]
        if gone:
            logger.warning("files of an earlier model are removed from %s: %s", self.repo_id, ", ".join(gone))
        return api.create_commit(
            self.repo_id,
            [*additions, *map(CommitOperationDelete, gone)],
            commit_message=self.message,
            revision=self.revision,
            parent_commit=self.parent,
        ).oid

    def _check_own(self, head, present):
        for path, file in self.files.items():
            if present.get(path) not in _local_oids(file):
                raise PushError(f"push failed at committing to {self.repo_id}: {ADVICE[412]}")
        return head

    def _upload(self, api, additions):
        # apart from the commit, since here the client itself tries six times; no .gitignore may leave out files
        try:
            api.preupload_lfs_files(
                self.repo_id, additions, revision=self.revision, free_memory=False, gitignore_content=""
            )
        except Exception as error:
            raise self.session.failure(f"uploading to {self.repo_id}", error) from None


def _is_loaded(path):
    return any(fnmatch.fnmatch(path, pattern) for pattern in LOADED_PATTERNS)


def _local_oids(file):
    """What the hub may call a file of this content: git's oid, or the sha256 if it is a large one."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


def _status(error):
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _may_pass(error):
    # by name: the client's HTTP library is httpx or httpx2, depending on its version
    is_network = any(base.__name__ == "TransportError" for base in type(error).__mro__)
    return is_network or _status(error) in TEMPORARY_STATUS


def _wait_asked_for(error):
    """Seconds that the hub asks to wait, at most MAX_WAIT_S."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(int(asked), MAX_WAIT_S) if asked.isdecimal() else 0
