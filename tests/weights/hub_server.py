"""A hub on this machine: the part of its HTTP interface that is used for models and data sets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
CONVERTED = "refs/convert/parquet"  # where a hub keeps a data set as Parquet; here as it is


class Hub:
    """Repositories: by name, a list of commits, each a mapping of file names to content."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}  # large files that were put before their commit
        self.requests: list[str] = []
        self.cut: int | None = None  # bytes of a body after which a connection ends, once
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit and return its digest."""
        commits = self.repositories.setdefault(repo, [])
        commits.append((commits[-1] if commits else {}) | files)
        return self.digest(repo, len(commits) - 1)

    def digest(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[repo]
        digests = [self.digest(repo, number) for number in range(len(commits))]
        if revision in ("main", CONVERTED) and commits:
            return digests[-1], commits[-1]
        return next(((d, c) for d, c in zip(digests, commits, strict=True) if d == revision), None)


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set by `serving`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        for pattern, action in (
            (r"/api/(?:models|datasets)/([^/]+/[^/]+?)(?:/revision/(.+))?", self._info),
            (r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            (r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self._paths),
            (r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda body: self._json({"errors": [], "warnings": []})),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._modes),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/objects/(\w+)", self._put),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
        ):
            if found := re.fullmatch(pattern, path):
                repo = found[1] if found.groups() and "/" in (found[1] or "") else ""
                known = not repo or repo in self.hub.repositories
                if known and repo in self.hub.private:
                    known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if not known:
                    return self._refuse(404, "RepoNotFound")
                return action(*found.groups(), body)
        return self._refuse(404, "EntryNotFound")

    def _info(self, repo: str, revision: str | None, body: bytes) -> None:
        found = self.hub.find(repo, revision or "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        return self._json({"id": repo, "sha": found[0], "siblings": [], "private": False})

    def _tree(self, repo: str, revision: str, folder: str | None, body: bytes) -> None:
        found = self.hub.find(repo, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        below = f"{folder}/" if folder else ""
        folders = {str(p) for name in found[1] for p in PurePosixPath(name).parents} - {"."}
        names = [name for name in sorted({*found[1], *folders}) if name.startswith(below)]
        return self._json([_entry(name, found[1]) for name in names])

    def _paths(self, repo: str, revision: str, body: bytes) -> None:
        found = self.hub.find(repo, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        asked = json.loads(body)["paths"]
        there = [
            name for name in asked if any(f"{one}/".startswith(f"{name}/") for one in found[1])
        ]
        return self._json([_entry(name, found[1]) for name in there])

    def _file(self, repo: str, revision: str, name: str, body: bytes) -> None:
        found = self.hub.find(repo, revision)
        if found is None or name not in found[1]:
            return self._refuse(404, "EntryNotFound" if found else "RevisionNotFound")
        data = found[1][name]
        start = 0
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            data = data[: int(wanted[2] or len(data)) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", found[0])
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.cut if self.hub.cut and len(data) > self.hub.cut else None
            self.wfile.write(data[start:][:cut])
            if cut:
                self.hub.cut, self.close_connection = None, True
        return None

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "")
        if repo in self.hub.repositories:
            return self._refuse(409, "")
        self.hub.repositories[repo] = []
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo)
        return self._json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _modes(self, repo: str, revision: str, body: bytes) -> None:
        files = json.loads(body)["files"]
        modes = {
            file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular"
            for file in files
        }
        self._json(
            {
                "files": [
                    {"path": name, "uploadMode": mode, "shouldIgnore": False}
                    for name, mode in modes.items()
                ]
            }
        )

    def _batch(self, repo: str, body: bytes) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str, body: bytes) -> None:
        self.hub.objects[oid] = body
        self._json({})

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            entry: Any = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        digest = self.hub.commit(repo, files)
        url = f"{self.hub.url}/{repo}/commit/{digest}"
        self._json({"success": True, "commitOid": digest, "commitUrl": url})

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """A file, or the folder of this name."""
    if name not in files:
        return {"type": "directory", "path": name, "oid": _oid(name.encode())}
    return {"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])}


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on this machine; `hub.url` is for HF_ENDPOINT."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
