"""A small Hugging Face hub on this machine, for tests of unmodified clients (huggingface_hub, transformers, datasets).

    python tests/hub_server.py --port 8000            # prints what to export
    HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=... HF_HUB_DISABLE_XET=1 hf upload tester/model folder

    with HubServer() as hub:                          # in a test
        hub.add_repo("tester/model", {"config.json": b"{}"})
        hub.fail(500, path="commit", times=1)         # the next request for a commit
        ...
        hub.requests                                  # [Logged(method, path, status), ...]

HF_HUB_DISABLE_XET is needed for uploads, since the server speaks LFS and not Xet. Repositories live in memory
(tests/hub_store.py), with every commit kept; the endpoints are in tests/hub_api.py.
"""

import argparse
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from hub_api import Answer, Request, answer, refusal
from hub_store import Repo

FAULTS = ("hang", "cut", "lose")
TOKEN = "hf_" + "local" * 7


class Logged(NamedTuple):
    """A request that has been answered; status 0 if the connection was cut instead."""

    method: str
    path: str
    status: int


class Fault:
    """What befalls requests that match; see `HubServer.fail`."""

    def __init__(self, how, method, path, nth, times):
        self.how, self.method, self.path = how, method, re.compile(path)
        self.skip, self.left = nth - 1, times

    def hits(self, method, path):
        if self.left == 0 or self.method not in (None, method) or not self.path.search(path):
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.left = None if self.left is None else self.left - 1
        return True


class HubServer:
    """The hub; a context manager that serves until it is left.

    Args: token, user: whose hub this is. page_size: entries of a page of the tree endpoint.
    """

    def __init__(self, token=TOKEN, user="tester", port=0, page_size=1000):
        self.token, self.user, self.page_size = token, user, page_size
        self.repos, self.requests, self.faults = {}, [], []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.server = _Server(("127.0.0.1", port), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add_repo(self, repo_id, files=None, repo_type="model", private=False):
        """A repository with one more commit if there are files. Returns: the `Repo`."""
        repo = self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, private)
        if files:
            repo.add_commit("main", files, "files")
        return repo

    def model(self, repo_id):
        """The model repository of that name."""
        return self.repos["model", repo_id]

    def fail(self, how, *, method=None, path="", nth=1, times=None):
        """Let requests fail.

        Args:
            how: a status such as 500; "hang": no answer; "cut": the connection ends amid the body, of the request
                where it has one and else of the response; "lose": all is done, and the response never arrives.
            method, path: only requests of that method, and whose path this regular expression finds.
            nth, times: from the n-th of those on, so many of them; None: all.
        """
        if how not in FAULTS and not isinstance(how, int):
            raise ValueError(f"how is {how!r}, allowed are a status and {', '.join(FAULTS)}")
        self.faults.append(Fault(how, method, path, nth, times))

    def recover(self):
        """Forget all faults and all requests so far."""
        self.faults.clear()
        self.requests.clear()

    def fault_for(self, method, path):
        with self.lock:
            return next((fault.how for fault in self.faults if fault.hits(method, path)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to report; anything else is a bug of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # headers and body are two packets, and the second would wait 40 ms for the first
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Nothing on stderr; `hub.requests` is the log."""

    def serve(self):
        hub = self.server.hub
        fault = hub.fault_for(self.command, self.path)
        body = self.read_body(half=fault == "cut")
        if fault == "hang" or (fault == "cut" and body):
            return self.cut(wait=fault == "hang")
        if isinstance(fault, int):
            return self.send(refusal(fault, f"{fault} on purpose"))
        with hub.lock:
            reply = answer(hub, Request(self.command, self.path, self.headers, body))
        return self.cut(reply if fault == "cut" else None) if fault else self.send(reply)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = serve

    def read_body(self, half=False):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(self.read_chunks(half))
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read((length + 1) // 2 if half else length)

    def read_chunks(self, half):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
            if half:
                return
        self.rfile.readline()

    def send(self, reply, length=None):
        """Send the answer; `length`: only so many bytes of it."""
        content = reply.content
        # before the client can know of it, so that a test finds it in the log
        if length is None:
            self.log(reply.status)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:length])

    def cut(self, reply: Answer | None = None, wait=False):
        """End the connection, after half of the answer if there is one; `wait`: not before the hub closes."""
        self.log(0)
        if reply is not None:
            self.send(reply, len(reply.content) // 2)
        if wait:
            self.server.hub.closing.wait()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log(self, status):
        self.server.hub.requests.append(Logged(self.command, self.path, status))


def main():
    parser = argparse.ArgumentParser(description="A small Hugging Face hub in memory; see the head of this file.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--token", default=TOKEN, help="the one token that may write")
    arguments = parser.parse_args()
    with HubServer(token=arguments.token, port=arguments.port) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1", flush=True)
        hub.closing.wait()


if __name__ == "__main__":
    main()
