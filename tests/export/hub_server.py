"""A small Hub on this machine: what `create_repo`, `upload_folder` and `snapshot_download` ask of the real one.

It takes every file within the commit (upload mode `regular`), as the Hub does with small ones.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 34


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Returns the commit and the files of a branch, or of a commit that a branch is at."""
        for name, files in self.branches.items():
            commit = hash_files(files)
            if revision in (name, commit):
                return commit, files
        return None


@dataclass
class Hub:
    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: int = 0  # status of every answer, where not 0


def hash_files(files: dict[str, bytes]) -> str:
    listed = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
    return hashlib.sha1(listed.encode()).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Yields a Hub that answers on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub := Hub(""))) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            hub.requests.append(f"{self.command} {self.path}")

        def answer(self, status: int, data: object = None, headers: dict[str, str] | None = None) -> None:
            body = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def fail(self, status: int, code: str) -> None:
            self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": f"{code} here"})

        def find(self, repo_id: str, revision: str) -> tuple[Repository, str, dict[str, bytes]] | None:
            repository = hub.repositories.get(repo_id)
            if repository is None or (repository.private and not self.is_known()):
                return self.fail(404, "RepoNotFound")
            found = repository.find(unquote(revision))
            if found is None:
                return self.fail(404, "RevisionNotFound")
            return repository, *found

        def is_known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if hub.failing:
                self.fail(hub.failing, "Broken")
            elif match := re.fullmatch(r"/(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path):
                if found := self.find(match[1], match[2]):
                    data = found[2][unquote(match[3])]
                    etag = f'"{hashlib.sha1(data).hexdigest()}"'
                    self.answer(200, data, {"ETag": etag, "X-Repo-Commit": found[1]})
            elif match := re.fullmatch(r"/api/models/(\w+/[\w-]+)/tree/([^/]+)", path):
                if found := self.find(match[1], match[2]):
                    self.answer(200, [describe_file(name, data) for name, data in found[2].items()])
            elif match := re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/revision/([^/]+))?", path):
                if found := self.find(match[1], match[2] or "main"):
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in found[2].items()]
                    shown = {"id": match[1], "sha": found[1], "private": found[0].private, "siblings": siblings}
                    self.answer(200, shown)
            else:
                self.fail(404, "NotFound")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            if hub.failing:
                return self.fail(hub.failing, "Broken")
            if not self.is_known():
                return self.fail(401, "Unauthorized")
            if path == "/api/validate-yaml":
                return self.answer(200, {"warnings": [], "errors": []})
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            match = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(preupload|commit|branch)/([^/]+)", path)
            if match is None:
                return self.fail(404, "NotFound")
            if match[2] == "branch":
                repository = hub.repositories[match[1]]
                if unquote(match[3]) in repository.branches:
                    return self.fail(409, "Conflict")
                repository.branches[unquote(match[3])] = dict(repository.branches["main"])
                return self.answer(200, {})
            found = self.find(match[1], match[3])
            if found is None:
                return None
            if match[2] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            apply_commit(found[0], found[2], [json.loads(line) for line in body.splitlines()])
            commit = hash_files(found[2])
            return self.answer(200, {"commitUrl": f"{hub.url}/{match[1]}/commit/{commit}", "commitOid": commit})

        def create(self, asked: dict[str, Any]) -> None:
            repo_id = f"{asked['organization']}/{asked['name']}"
            if repo_id in hub.repositories:
                return self.answer(409, {"url": f"{hub.url}/{repo_id}"}, {"X-Error-Message": "it is there"})
            hub.repositories[repo_id] = Repository(asked.get("visibility") == "private" or asked.get("private") is True)
            return self.answer(200, {"url": f"{hub.url}/{repo_id}"})

    return Handler


def describe_file(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def apply_commit(repository: Repository, files: dict[str, bytes], operations: list[dict[str, Any]]) -> None:
    for operation in operations:
        value = operation["value"]
        if operation["key"] == "header":
            repository.messages.append(value["summary"])
        elif operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "deletedFile":
            del files[value["path"]]
