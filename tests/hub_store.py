"""What the local hub of tests/hub_server.py holds: repositories as git has them, with every commit kept, in memory."""

import base64
import fnmatch
import hashlib
import json
from dataclasses import dataclass, field

# what the real hub's .gitattributes sends through LFS
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.onnx", "*.parquet", "*.arrow", "*.png")


class HubError(Exception):
    """A refusal: HTTP status, message, and the code that huggingface_hub turns into its exceptions."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Commit:
    """One revision of a repository. Its files never change."""

    oid: str
    parent: str | None
    title: str
    description: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository: commits by oid, branches as names for some of them, and LFS objects by sha256."""

    repo_id: str
    repo_type: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        # as on the real hub, a new repository has a first commit
        self.add_commit("main", {".gitattributes": gitattributes()}, "initial commit")

    def head(self, revision="main"):
        """The commit that a branch or a commit's oid names. Raises: HubError 404."""
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision, path):
        """(commit, content). Raises: HubError 404."""
        commit = self.head(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return commit, commit.files[path]

    def history(self, branch="main"):
        """Commits of a branch, the newest first."""
        oid, found = self.branches[branch], []
        while oid is not None:
            found.append(self.commits[oid])
            oid = found[-1].parent
        return found

    def add_branch(self, name, start="main"):
        """Raises: HubError 409 if the branch exists."""
        if name in self.branches:
            raise HubError(409, f"Reference already exists: {name}")
        self.branches[name] = self.head(start).oid

    def add_commit(self, branch, files, title, description=""):
        """Make `files` the content of the branch. Returns: the commit."""
        parent = self.branches.get(branch)
        text = repr((parent, title, description, sorted((path, sha256(files[path])) for path in files)))
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, description, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def commit_ndjson(self, branch, lines):
        """Apply the body of a commit request as a whole, or not at all.

        Raises: HubError 404 for an unknown branch, 412 if it has moved on, 400 for what cannot be applied.
        """
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, *operations = (json.loads(line) for line in lines.splitlines() if line.strip())
        expected = header["value"].get("parentCommit")
        if expected is not None and expected != self.branches[branch]:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.head(branch).files)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        return self.add_commit(branch, files, header["value"]["summary"], header["value"].get("description", ""))

    def _apply(self, files, key, value):
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.lfs:
                raise HubError(400, f"LFS pointer of {path} points to a file that does not exist")
            files[path] = self.lfs[value["oid"]]
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"unknown operation {key}")

    def describe(self, revision):
        """What /api/models/ID answers."""
        commit = self.head(revision)
        siblings = [sibling(path, commit.files[path]) for path in sorted(commit.files)]
        return {"id": self.repo_id, "sha": commit.oid, "private": self.private, "siblings": siblings, "tags": []}

    def entries(self, revision, folder="", recursive=True):
        """Files and folders below a folder, as the tree endpoint lists them. Raises: HubError 404."""
        files = self.head(revision).files
        prefix = f"{folder}/" if folder else ""
        below = sorted(path for path in files if path.startswith(prefix))
        if not below and folder:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        paths = [path for path in below if recursive or "/" not in path.removeprefix(prefix)]
        parents = {"/".join(path.split("/")[:depth]) for path in below for depth in range(1, path.count("/") + 1)}
        folders = sorted(
            name for name in parents if name.startswith(prefix) and (recursive or "/" not in name.removeprefix(prefix))
        )
        return [folder_entry(name) for name in folders] + [file_entry(path, files[path]) for path in paths]

    def paths_info(self, revision, paths):
        """Entries of those of the paths that exist."""
        known = {entry["path"]: entry for entry in self.entries(revision)}
        return [known[path.rstrip("/")] for path in paths if path.rstrip("/") in known]

    def preupload(self, revision, path):
        """How a file is to be uploaded, and what of that name is there."""
        content = self.head(revision).files.get(path)
        answer = {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False}
        return answer if content is None else {**answer, "oid": etag_of(path, content)}


def gitattributes():
    return "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


def is_lfs(path):
    return any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(path, content):
    """sha256 of an LFS file, git's oid of any other."""
    return sha256(content) if is_lfs(path) else git_oid(content)


def file_entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def sibling(path, content):
    """A file as a model's description lists it, which has other names for the same things than the tree has."""
    found = {"rfilename": path, "size": len(content), "blobId": git_oid(content)}
    if is_lfs(path):
        found["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return found


def folder_entry(path):
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
