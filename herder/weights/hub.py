"""Fetching models from a Hugging Face hub: the only module that speaks to the network for them.

huggingface_hub does the speaking (token, endpoint, proxies, redirects, retries) and is imported when it is needed. One
request lists the repository with sizes and checksums; then each file that is missing is fetched into the shared cache
(hubcache), continuing where an interrupted fetch stopped, and compared with its checksum before it gets its name.

huggingface_hub's own downloader neither continues across runs nor compares checksums, which is why it is used here only
for what plain HTTP cannot fetch: files above 50 GB.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from herder.core import machine
from herder.core.errors import HerderError, ModelNotFound, NetworkError, StorageError
from herder.core.sizes import bytes_text
from herder.weights import hubcache
from herder.weights.lock import exclusive
from herder.weights.registry import HubName
from herder.weights.selection import select
from herder.weights.storage import CHUNK, FULL, Progress, require_space, storing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CONNECTIONS = 4  # files fetched at once
_ATTEMPTS = 5  # of one file without a new byte
_HTTP_LIMIT = 50 * 10**9
_TIMEOUT = 30.0  # seconds without an answer


class _File(NamedTuple):
    """One file of a repository. etag: sha256 (64 digits, large files) or git object id (40 digits)."""

    name: str
    bytes: int
    etag: str


def fetch(name: HubName, called: str, progress: Progress) -> Path:
    """Brings name's newest state into the cache and returns the path to open.

    called: what the user typed, for messages. Files that are already there are not fetched again.
    Raises ModelNotFound, UnsupportedModel (pickled weights only), NetworkError (unreachable, gated, interrupted) and
    StorageError (disk full, checksum).
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=machine.hub_endpoint(), library_name="herder")
    with _explained(name, called):
        commit, listing = _list(api, name)
    chosen = select({file.name: file.bytes for file in listing.values()}, name.file, f"{name.repo}")
    wanted = [listing[file] for file in chosen.files]
    unique = list({file.etag: file for file in wanted}.values())  # files with the same bytes share a blob
    root = hubcache.repository(name.repo)
    blobs = root / "blobs"
    way_out = "free some space, or set HF_HUB_CACHE to a directory on a larger disk"
    waiting = f"waiting for the process that fetches {name.repo}"
    with (
        storing(blobs, sum(file.bytes for file in unique), str(name), way_out),
        exclusive(hubcache.lock(name.repo), lambda: progress(waiting, 0, None)),
    ):
        missing = [file for file in unique if not _present(root, commit, file)]
        require_space(blobs, sum(file.bytes - _partial_bytes(blobs, file) for file in missing), str(name), way_out)
        with _explained(name, called):
            _Transfer(api, name, commit, unique, missing, progress).run()
        for file in wanted:
            hubcache.link(name.repo, commit, file.name, file.etag)
        hubcache.set_ref(name.repo, name.revision, commit)
    return hubcache.entry_path(root / "snapshots" / commit, chosen)


def _list(api: HfApi, name: HubName) -> tuple[str, dict[str, _File]]:
    """(commit, files) of name's revision, in one request."""
    no_hub = NetworkError(f"{api.endpoint} does not answer as a Hugging Face hub does: check HF_ENDPOINT and the proxy")
    try:
        info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=_TIMEOUT)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:  # a captive portal, some web page
        raise no_hub from error
    files: dict[str, _File] = {}
    for one in info.siblings or ():
        etag = one.lfs.sha256 if one.lfs is not None else one.blob_id
        if one.size is not None and etag and _safe(one.rfilename) and set(etag) <= set("0123456789abcdef"):
            files[one.rfilename] = _File(one.rfilename, one.size, etag)
    if not info.sha or not files:
        raise no_hub
    return info.sha, files


def _safe(file: str) -> bool:
    """A server must not choose where on this disk a file goes."""
    return not file.startswith("/") and "\\" not in file and not {"", ".", ".."} & set(file.split("/"))


def _present(root: Path, commit: str, file: _File) -> bool:
    return any(
        path.is_file() and path.stat().st_size == file.bytes
        for path in (root / "blobs" / file.etag, root / "snapshots" / commit / file.name)
    )


def _partial(blobs: Path, file: _File) -> Path:
    return blobs / (file.etag + hubcache.PARTIAL)


def _partial_bytes(blobs: Path, file: _File) -> int:
    with contextlib.suppress(OSError):
        return min(_partial(blobs, file).stat().st_size, file.bytes)
    return 0


class _Stopped(Exception):
    """Another file of the same model failed, or the user pressed Ctrl-C."""


class _Transfer:
    """All missing files of one model, a few at a time, with one progress for all of them."""

    def __init__(
        self, api: HfApi, name: HubName, commit: str, wanted: list[_File], missing: list[_File], progress: Progress
    ) -> None:
        self.api, self.name, self.commit, self.missing = api, name, commit, missing
        self.blobs = hubcache.repository(name.repo) / "blobs"
        self.total = sum(file.bytes for file in wanted)
        self.done = {file.etag: file.bytes for file in wanted if file not in missing}
        self.progress = progress
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def run(self) -> None:
        if not self.missing:
            return
        self.blobs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            futures = [pool.submit(self._fetch, file) for file in sorted(self.missing, key=lambda f: -f.bytes)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                # The first real reason, and not the _Stopped that it caused elsewhere.
                for future in futures:
                    if future.done() and not future.cancelled() and not isinstance(future.exception(), _Stopped | None):
                        raise future.exception() from None  # type: ignore[misc]
                raise

    def report(self, file: _File, done: int) -> None:
        with self.lock:
            if self.stop.is_set():
                raise _Stopped
            self.done[file.etag] = done
            self.progress(f"fetching {self.name}", min(sum(self.done.values()), self.total), self.total)

    def _fetch(self, file: _File) -> None:
        if file.bytes > _HTTP_LIMIT:
            self.api.hf_hub_download(self.name.repo, file.name, revision=self.commit)
            return
        partial = _partial(self.blobs, file)
        try:
            self._receive(file, partial)
            _check(partial, file)
        except OSError as error:
            if error.errno in FULL:  # a full disk hurts every program on it: give the space back
                partial.unlink(missing_ok=True)
            raise
        except StorageError:  # a wrong byte does not become right: nothing to continue from
            partial.unlink(missing_ok=True)
            raise
        os.replace(partial, self.blobs / file.etag)

    def _receive(self, file: _File, partial: Path) -> None:
        """Fills partial up to the file's size, continuing after what it holds, and again after a broken connection."""
        attempts = 0
        with open(partial, "ab") as out:
            while out.tell() != file.bytes:
                before = out.tell()
                try:
                    self._stream(file, out)
                    if out.tell() > file.bytes:
                        raise StorageError(f"{file.name} is longer than the {file.bytes} bytes that were announced")
                except Exception as error:
                    if not _transient(error):
                        raise
                    attempts = 0 if out.tell() > before else attempts + 1
                    if attempts >= _ATTEMPTS:
                        raise
                    _pause(self.stop, attempts)
            out.flush()
            os.fsync(out.fileno())

    def _stream(self, file: _File, out: BinaryIO) -> None:
        """One request for what is missing at the end of out."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported at run time
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        start = out.tell() if out.tell() < file.bytes else 0
        url = hf_hub_url(self.name.repo, file.name, revision=self.commit, endpoint=self.api.endpoint)
        headers = build_hf_headers(library_name="herder") | {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        # retry_on_exceptions=(): it would otherwise ask again for what broke in the middle of the body, from the start.
        request = http_stream_backoff(
            "GET", url, headers=headers, timeout=_TIMEOUT, max_retries=1, retry_on_exceptions=()
        )
        with request as response:
            hf_raise_for_status(response)
            if response.status_code != 206 or start == 0:
                out.truncate(0)  # the server sends the file from its start
            for chunk in response.iter_bytes(CHUNK):
                out.write(chunk)
                self.report(file, out.tell())


def _pause(stop: threading.Event, attempts: int) -> None:
    stop.wait(2.0**attempts)


def _check(path: Path, file: _File) -> None:
    """Compares a file with its etag: sha256 of the bytes, or git's object id (sha1 of "blob <size>", NUL, bytes)."""
    import hashlib

    digest = (
        hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    )
    with open(path, "rb") as data:
        while chunk := data.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.etag:
        raise StorageError(
            f"{file.name} came with checksum {digest.hexdigest()} and not {file.etag}: it was deleted, pull it again"
        )


def _transient(error: Exception) -> bool:
    """Whether the connection failed or broke, so that asking again can help.

    Told by name: huggingface_hub has changed its HTTP library twice, and the classes with it.
    """
    return any(kind.__name__ in ("TransportError", "ConnectionError", "TimeoutError") for kind in type(error).__mro__)


@contextlib.contextmanager
def _explained(name: HubName, called: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub import errors

    endpoint = machine.hub_endpoint()
    page = f"{endpoint}/{name.repo}"
    try:
        yield
    except (HerderError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError as error:
        raise NetworkError(
            f"{name.repo} is gated by its owner: accept the licence at {page}, then run `hf auth login` "
            f"(or set HF_TOKEN) and `herder pull {called}` again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{name.repo} has no revision {name.revision}: {page}/commits/main lists them") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{endpoint} shows no model {name.repo}: check the spelling; if it is private, run `hf auth login` "
            "(or set HF_TOKEN) first"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(f"{name} lists a file that {endpoint} does not have: try again later") from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{name.repo!r} is not a valid repository id: write org/name") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        if status in (401, 403):
            raise NetworkError(
                f"{endpoint} refuses {name.repo} with the token given ({status}): run `hf auth login` with a token "
                f"that may read it, or visit {page}"
            ) from error
        raise NetworkError(
            f"{endpoint} answered {status} for {name.repo}: try `herder pull {called}` again later"
        ) from error
    except Exception as error:
        if not _transient(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        got = _fetched(name)
        rest = f"; the {bytes_text(got)} that arrived are kept, and the same command continues there" if got else ""
        raise NetworkError(f"{name.repo} could not be fetched from {endpoint} ({reason}){rest}") from error


def _fetched(name: HubName) -> int:
    return sum(path.stat().st_size for path in (hubcache.repository(name.repo) / "blobs").glob(f"*{hubcache.PARTIAL}"))
