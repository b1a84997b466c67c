"""The chat page at / and the API's description at /docs: the package's own files, which load nothing from elsewhere."""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from herder.serve import exchange as exchanges
from herder.serve.dialect import Dialect
from herder.serve.openapi import describe

STATIC = Path(__file__).parent / "web" / "static"  # web/build.mjs writes it

# The page runs its own scripts and speaks to its own server, and nothing else: not a script of an answer, not a picture
# that an answer links. Trusted types let HTML in through DOMPurify alone.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "vary": "accept, accept-encoding",
}
PAGES = {"/": "index.html", "/docs": "docs.html"}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """lasting: its name has its content's hash, so a browser need never ask again."""

    body: bytes
    zipped: bytes
    content_type: str
    etag: str
    lasting: bool


@functools.cache
def static_files() -> Mapping[str, StaticFile]:
    """Every file of the page by its path, read once: three hundred kilobytes."""
    found = {}
    for path in sorted(STATIC.rglob("*.*")):
        body = path.read_bytes()
        name = "/" + path.relative_to(STATIC).as_posix()
        zipped = gzip.compress(body, mtime=0)
        etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        found[name] = StaticFile(body, zipped, TYPES[path.suffix], etag, name.startswith("/assets/"))
    return found


def page_routes(dialects: Sequence[Dialect]) -> list[BaseRoute]:
    """Routes of the page: they need no key, for they hold nothing but the program and the API's description."""
    paths = [*PAGES, "/favicon.svg", "/licences.txt", "/assets/{name}"]
    description = functools.cache(lambda: describe(dialects, _version()))

    async def openapi(request: Request) -> Response:
        _count(request, "/openapi.json")
        return JSONResponse(description())

    return [*(Route(path, _file, methods=["GET"]) for path in paths), Route("/openapi.json", openapi, methods=["GET"])]


def _version() -> str:
    try:
        return version("herder")
    except PackageNotFoundError:
        return "0"  # run from its source tree


def _count(request: Request, path: str) -> None:
    """Under which path the server's metrics have this request."""
    if "herder.exchange" in request.scope:
        exchanges.of(request.scope).path = path


async def _file(request: Request) -> Response:
    path = request.url.path
    _count(request, "/assets/{name}" if path.startswith("/assets/") else path)
    if path == "/" and "text/html" not in request.headers.get("accept", ""):
        # Ollama's clients ask here whether there is a server, and some compare the words.
        return PlainTextResponse("Ollama is running", headers={"vary": "accept"})
    file = static_files().get("/" + PAGES.get(path, path[1:]))
    if file is None:
        return PlainTextResponse("there is no such file\n", 404, HEADERS)
    headers = {
        **HEADERS,
        "etag": file.etag,
        "cache-control": "public, max-age=31536000, immutable" if file.lasting else "no-cache",
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    body = file.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = file.zipped
        headers["content-encoding"] = "gzip"
    return Response(body, 200, headers, file.content_type)
