"""A Hugging Face hub on the loopback interface: the endpoints huggingface_hub uses, and the ways they fail.

GET  /api/models/<repo>/revision/<rev>?blobs=true   listing with sizes, git object ids and sha256 of large files
GET  /api/models/<repo>/tree/<rev>                  the same as a tree (snapshot_download)
HEAD, GET /<repo>/resolve/<rev>/<file>              ETag, X-Repo-Commit; large files redirect to /cdn/ with X-Linked-*
GET  /cdn/<sha256>                                  bytes, with Range
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """files of one commit. gated: None, or the status given to those who may not read (401 or 403)."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    revisions: tuple[str, ...] = ("main",)
    gated: int | None = None
    private: bool = False
    large: int = 1000  # bytes from which a file is stored as LFS, behind a redirect


@dataclass
class FakeHub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_good"
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection breaks, once
    always_cut: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)  # files served with a wrong byte
    ignore_range: bool = False
    fail: dict[str, int] = field(default_factory=dict)  # path prefix -> status
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers (lower case)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def requested(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        """Headers of the requests whose path contains part."""
        return [headers for verb, path, headers in self.log if verb == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.fake.log.append((self.command, self.path, headers))
        for prefix, status in self.fake.fail.items():
            if path.startswith(prefix):
                return self.reply(status, b"broken", {})
        if path.startswith("/cdn/"):
            return self.cdn(path.removeprefix("/cdn/"), body)
        if path.startswith("/api/models/"):
            return self.api(path.removeprefix("/api/models/"), headers)
        organization, name, verb, revision, file = (path.lstrip("/").split("/", 4) + [""] * 5)[:5]
        repository = self.repository(f"{organization}/{name}", headers)
        if repository is None or verb != "resolve":
            return None if repository is None else self.error(404, "EntryNotFound")
        if repository.gated and headers.get("authorization") != f"Bearer {self.fake.token}":
            return self.error(repository.gated, "GatedRepo")
        if revision not in (*repository.revisions, repository.commit):
            return self.error(404, "RevisionNotFound")
        if file not in repository.files:
            return self.error(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
        data = repository.files[file]
        common = {"X-Repo-Commit": repository.commit}
        if len(data) < repository.large:
            return self.data(file, data, {**common, "ETag": f'"{git_id(data)}"'}, body)
        sha256 = hashlib.sha256(data).hexdigest()
        location = f"http://localhost:{self.fake.server.server_port}/cdn/{sha256}"  # another host: tokens stay behind
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "Location": location}
        return self.reply(302, b"", {**common, **linked, "ETag": '"pointer"'})

    def repository(self, repo: str, headers: dict[str, str]) -> Repository | None:
        repository = self.fake.repositories.get(repo)
        given = headers.get("authorization")
        if repository is None or (repository.private and given != f"Bearer {self.fake.token}"):
            self.error(404 if given else 401, "RepoNotFound")
            return None
        return repository

    def api(self, path: str, headers: dict[str, str]) -> None:
        organization, name, *rest = path.split("/", 3)
        repository = self.repository(f"{organization}/{name}", headers)
        if repository is None:
            return None
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (*repository.revisions, repository.commit):
            return self.error(404, "RevisionNotFound")
        siblings = []
        for file, data in repository.files.items():
            one: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": git_id(data)}
            if len(data) >= repository.large:
                sha256 = hashlib.sha256(data).hexdigest()
                one["lfs"] = {"size": len(data), "sha256": sha256, "oid": sha256, "pointerSize": 130}
            siblings.append(one)
        if rest and rest[0] == "tree":
            tree = [
                {
                    "type": "file",
                    "path": s["rfilename"],
                    "oid": s["blobId"],
                    **{k: s[k] for k in ("size", "lfs") if k in s},
                }
                for s in siblings
            ]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        info = {
            "id": f"{organization}/{name}",
            "sha": repository.commit,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }
        return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def cdn(self, sha256: str, body: bool) -> None:
        for repository in self.fake.repositories.values():
            for file, data in repository.files.items():
                if hashlib.sha256(data).hexdigest() == sha256:
                    return self.data(file, data, {"ETag": f'"{sha256}"'}, body)
        return self.error(404, "EntryNotFound")

    def data(self, file: str, data: bytes, headers: dict[str, str], body: bool) -> None:
        if file in self.fake.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        status, start, total = 200, 0, len(data)
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and not self.fake.ignore_range:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        cut = self.fake.always_cut.get(file) or self.fake.cut.pop(file, None) if body else None
        sent = data[start:] if cut is None else data[start : start + cut]
        self.reply(status, sent, headers, length=total - start, body=body)
        if cut is not None:
            self.close_connection = True

    def error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.reply(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def reply(
        self, status: int, data: bytes, headers: dict[str, str], *, length: int | None = None, body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)
