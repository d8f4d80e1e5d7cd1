"""The endpoints of the Hugging Face hub that huggingface_hub, transformers and datasets call, over tests/hub_store.py.

Each endpoint is a function (hub, request, *groups of its pattern) -> Answer, entered into ENDPOINTS by `endpoint`.
"""

import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import HubError, Repo, etag_of, is_lfs, sha256

ENDPOINTS = []
REPO = r"(models|datasets|spaces)/((?:[^/]+/)?[^/]+?)"


@dataclass
class Request:
    """One HTTP request; `path` is still quoted and has no query."""

    method: str
    target: str
    headers: dict
    body: bytes

    def __post_init__(self):
        parts = urlsplit(self.target)
        self.path, self.query = parts.path, {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def json(self):
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    """Status, body and headers of a response; a body that is not bytes is sent as JSON."""

    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)

    @property
    def content(self):
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def endpoint(methods, pattern):
    """Enter a function for the methods (separated by spaces) and the paths that match `pattern`."""

    def enter(function):
        ENDPOINTS.append((methods.split(), re.compile(pattern), function))
        return function

    return enter


def answer(hub, request):
    """The answer to a request. Refusals of the hub are answers too, with the headers that the client reads."""
    try:
        for methods, pattern, function in ENDPOINTS:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods:
                return function(hub, request, *(unquote(group or "") for group in match.groups()))
        raise HubError(404, f"no endpoint {request.method} {request.path}")
    except HubError as error:
        return refusal(error.status, error.message, error.code)


def refusal(status, message, code=None):
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer({"error": message}, status, headers)


def check_token(hub, request):
    """Raises: HubError 401 for a wrong token or none."""
    if request.token != hub.token:
        given = "Invalid credentials in Authorization header" if request.token else "Invalid username or password."
        raise HubError(401, given)


def find_repo(hub, request, repo_type, repo_id, write=False):
    """The repository. As on the hub, whoever may not read it is not told whether it exists."""
    if write or request.token:
        check_token(hub, request)
    repo = hub.repos.get((repo_type.removesuffix("s"), repo_id))
    if repo is None and request.token:
        raise HubError(404, "Repository not found", "RepoNotFound")
    if repo is None or (repo.private and not request.token):
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    return repo


@endpoint("GET", "/api/whoami-v2")
def whoami(hub, request):
    check_token(hub, request)
    return Answer({"type": "user", "name": hub.user, "orgs": [], "auth": {"type": "access_token"}})


@endpoint("GET", "/api/agent-harnesses")
def agent_harnesses(hub, request):
    # huggingface_hub asks once a day which tools may be calling it
    return Answer({"standardEnvVars": [], "harnesses": {}})


@endpoint("POST", "/api/repos/create")
def create_repo(hub, request):
    check_token(hub, request)
    wanted = request.json()
    owner, repo_type = wanted.get("organization") or hub.user, wanted.get("type") or "model"
    repo_id = f"{owner}/{wanted['name']}"
    if owner != hub.user:
        raise HubError(403, f"You don't have the rights to create a {repo_type} under the namespace {owner}")
    url = f"{hub.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
    if (repo_type, repo_id) in hub.repos:
        return Answer({"error": f"You already created this {repo_type} repo: {repo_id}", "url": url}, 409)
    hub.repos[repo_type, repo_id] = Repo(repo_id, repo_type, wanted.get("visibility") == "private")
    return Answer({"url": url, "name": repo_id})


@endpoint("POST", "/api/validate-yaml")
def validate_yaml(hub, request):
    head = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    if head is None:
        return Answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        metadata = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    errors = [] if isinstance(metadata, dict) else [{"message": "metadata is no mapping"}]
    return Answer({"errors": errors, "warnings": []}, 400 if errors else 200)


@endpoint("GET", rf"/api/{REPO}(?:/revision/([^/]+))?")
def repo_info(hub, request, repo_type, repo_id, revision):
    return Answer(find_repo(hub, request, repo_type, repo_id).describe(revision or "main"))


@endpoint("GET", rf"/api/{REPO}/refs")
def refs(hub, request, repo_type, repo_id):
    branches = find_repo(hub, request, repo_type, repo_id).branches
    listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches.items()]
    return Answer({"branches": listed, "converts": [], "tags": [], "pullRequests": []})


@endpoint("POST", rf"/api/{REPO}/branch/([^/]+)")
def create_branch(hub, request, repo_type, repo_id, name):
    repo = find_repo(hub, request, repo_type, repo_id, write=True)
    repo.add_branch(name, request.json().get("startingPoint", "main"))
    return Answer(b"OK")


@endpoint("GET", rf"/api/{REPO}/tree/([^/]+)(?:/(.+))?")
def tree(hub, request, repo_type, repo_id, revision, folder):
    repo = find_repo(hub, request, repo_type, repo_id)
    entries = repo.entries(revision, folder, request.query.get("recursive", "").lower() in ("true", "1"))
    start = int(request.query.get("cursor", 0))
    page, headers = entries[start : start + hub.page_size], {}
    if start + hub.page_size < len(entries):
        recursive = request.query.get("recursive", "false")
        following = f"{hub.url}{request.path}?recursive={recursive}&cursor={start + hub.page_size}"
        headers["Link"] = f'<{following}>; rel="next"'
    return Answer(page, headers=headers)


@endpoint("POST", rf"/api/{REPO}/paths-info/([^/]+)")
def paths_info(hub, request, repo_type, repo_id, revision):
    paths = parse_qs(request.body.decode())["paths"]
    return Answer(find_repo(hub, request, repo_type, repo_id).paths_info(revision, paths))


@endpoint("POST", rf"/api/{REPO}/preupload/([^/]+)")
def preupload(hub, request, repo_type, repo_id, revision):
    repo = find_repo(hub, request, repo_type, repo_id, write=True)
    return Answer({"files": [repo.preupload(revision, file["path"]) for file in request.json()["files"]]})


@endpoint("POST", r"/(?:(datasets|spaces)/)?((?:[^/]+/)?[^/]+)\.git/info/lfs/objects/batch")
def lfs_batch(hub, request, repo_type, repo_id):
    repo = find_repo(hub, request, repo_type or "models", repo_id, write=True)
    objects = []
    for wanted in request.json()["objects"]:
        place = f"{hub.url}/lfs/{repo.repo_type}/{repo_id}"
        upload = {"href": f"{place}/upload/{wanted['oid']}"}
        verify = {"href": f"{place}/verify/{wanted['oid']}"}
        actions = {} if wanted["oid"] in repo.lfs else {"actions": {"upload": upload, "verify": verify}}
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
    return Answer({"transfer": "basic", "objects": objects})


@endpoint("PUT", r"/lfs/(\w+)/(.+)/upload/(\w+)")
def lfs_upload(hub, request, repo_type, repo_id, oid):
    # storage knows no tokens: on the real hub the address itself is signed
    if sha256(request.body) != oid:
        raise HubError(400, "content does not have the sha256 that it was announced with")
    hub.repos[repo_type, repo_id].lfs[oid] = request.body
    return Answer()


@endpoint("POST", r"/lfs/(\w+)/(.+)/verify/(\w+)")
def lfs_verify(hub, request, repo_type, repo_id, oid):
    repo = find_repo(hub, request, repo_type, repo_id, write=True)
    if len(repo.lfs.get(oid, b"")) != request.json()["size"]:
        raise HubError(404, "object is not there, or has another size")
    return Answer()


@endpoint("POST", rf"/api/{REPO}/commit/([^/]+)")
def commit(hub, request, repo_type, repo_id, branch):
    repo = find_repo(hub, request, repo_type, repo_id, write=True)
    made = repo.commit_ndjson(branch, request.body)
    return Answer({"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{repo_id}/commit/{made.oid}"})


@endpoint("HEAD GET", r"/(?:(datasets|spaces)/)?((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)")
def resolve(hub, request, repo_type, repo_id, revision, path):
    repo = find_repo(hub, request, repo_type or "models", repo_id)
    headers = {"X-Repo-Commit": repo.head(revision).oid, "Accept-Ranges": "bytes"}
    try:
        _, content = repo.file(revision, path)
    except HubError as error:
        absent = refusal(error.status, error.message, error.code)
        return Answer(absent.body, absent.status, absent.headers | headers)
    etag = f'"{etag_of(path, content)}"'
    headers |= {"ETag": etag, "X-Linked-Size": str(len(content))} | ({"X-Linked-Etag": etag} if is_lfs(path) else {})
    return part_of(content, request.headers.get("Range"), headers)


def part_of(content, wanted, headers):
    """The whole content, or the bytes that a Range header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None or match[0] == "bytes=-":
        return Answer(content, 200, headers)
    first = int(match[1]) if match[1] else max(len(content) - int(match[2]), 0)
    last = min(int(match[2]), len(content) - 1) if match[1] and match[2] else len(content) - 1
    if first >= len(content):
        return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    return Answer(content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})
