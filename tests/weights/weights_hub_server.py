"""A Hub of models on the loopback interface: the routes the real client uses, over files held in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


@dataclass
class Repository:
    """Commits (oldest first) of files by name, and who may read them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], deleted: tuple[str, ...] = ()) -> str:
        latest = {name: content for name, content in (self.files("main") or {}).items() if name not in deleted}
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = {**latest, **files}
        return sha

    def sha(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None

    def files(self, revision: str) -> dict[str, bytes] | None:
        sha = self.sha(revision)
        return None if sha is None else self.commits[sha]


class Hub:
    """The server. `repositories` is its content, `requests` what it was asked; `cut` and `failing` make it misbehave.

    Attributes:
        cut: By file name: after how many bytes a download breaks off, once.
        failing: File names whose download is answered with an internal error.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.cut: dict[str, int] = {}
        self.failing: set[str] = set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, files: dict[str, bytes], **access: bool) -> str:
        """Commit files to a repository, made when it does not exist; the commit."""
        return self.repositories.setdefault(name, Repository(**access)).commit(files)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _route(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        self.body = self._read_body()
        routes = (
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)", self._info),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/api/repos/create", self._create),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/blobs/([0-9a-f]{64})", self._blob),
            (r"/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
        )
        for pattern, handle in routes:
            if match := re.fullmatch(pattern, path):
                handle(*match.groups())
                return
        self._fail(404, "RouteNotFound")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _allowed(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != "Bearer hf_owner"):
            self._fail(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
            return None
        return repository

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        if repository.gated:
            self._fail(403, "GatedRepo")
            return
        files = repository.files(revision)
        if files is None:
            self._fail(404, "RevisionNotFound")
            return
        commit = {"X-Repo-Commit": str(repository.sha(revision))}
        if file not in files:
            self._fail(404, "EntryNotFound", commit)
            return
        if file in self.hub.failing:
            self._fail(500, "")
            return
        content = files[file]
        headers = {**commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            end = self.hub.cut.pop(file, len(content))
            self.wfile.write(content[start:end])
            self.close_connection = self.close_connection or end < len(content)

    def _info(self, name: str, revision: str = "main") -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None and repository.commits:
            self._fail(404, "RevisionNotFound")
            return
        if "/tree/" in self.path:
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in (files or {}).items()
            ]
            self._json(entries)
            return
        siblings = [{"rfilename": file} for file in files or {}]
        self._json({"id": name, "sha": repository.sha(revision), "siblings": siblings, "private": False, "tags": []})

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
            return
        self.hub.repositories[name] = Repository(private=bool(wanted.get("private")))
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _preupload(self, name: str, revision: str) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        if repository.gated:
            self._fail(403, "")
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, name: str) -> None:
        if self._allowed(name) is None:
            return
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}}}
            for item in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _blob(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._fail(400, "")
            return
        self.hub.blobs[oid] = self.body
        self._json({})

    def _commit(self, name: str, revision: str) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        files, deleted = {}, []
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        sha = repository.commit(files, tuple(deleted))
        self._json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""})

    def _json(self, content: Any, status: int = 200, kind: str = "application/json") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "X-Error-Code": code, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()
