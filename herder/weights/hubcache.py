"""Models in the cache that huggingface_hub and every tool built on it share: found, placed, listed and removed.

Herder keeps hub models there and nowhere else, so that a model which another tool has fetched is not fetched again and
the other way round. The layout is documented under "Understand caching" in the huggingface_hub guides:

    models--org--name/
        blobs/<etag>                   the bytes: named by sha256 (large files) or git object id (small ones)
        snapshots/<commit>/<file>      relative links to blobs (or the files themselves where links are not possible)
        refs/<revision>                the commit that a branch or tag stood at when it was last fetched

Nothing here uses the network or imports huggingface_hub.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from herder.core import machine
from herder.core.errors import ModelNotFound
from herder.weights.registry import HubName
from herder.weights.selection import Selection, gguf_models, select

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
PARTIAL = ".herder-part"  # end of a blob's name while it is being fetched


def repository(repo: str) -> Path:
    return machine.hub_cache() / ("models--" + repo.replace("/", "--"))


def lock(repo: str) -> Path:
    """The lock file of those who change repo's part of the cache through Herder."""
    return machine.hub_cache() / ".locks" / repository(repo).name / "herder.lock"


def snapshot(name: HubName) -> Path | None:
    """The directory that holds name's revision, as it was when last fetched. A commit may be shortened to 7 digits."""
    root = repository(name.repo)
    try:
        commit = (root / "refs" / name.revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        commit = name.revision
    if _COMMIT.fullmatch(commit):
        found = root / "snapshots" / commit
        return found if found.is_dir() else None
    if len(commit) >= 7 and set(commit) <= set("0123456789abcdef"):
        matches = list((root / "snapshots").glob(f"{commit}*"))
        return matches[0] if len(matches) == 1 else None
    return None


def files(directory: Path) -> dict[str, int]:
    """Files below directory -> bytes; links to nothing are left out."""
    found: dict[str, int] = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                found[path.relative_to(directory).as_posix()] = path.stat().st_size
    return found


def find(name: HubName) -> Path | None:
    """Where name lies in the cache, complete; None when it (or a part of it) is not there."""
    directory = snapshot(name)
    if directory is None:
        return None
    present = files(directory)
    try:
        chosen = select(present, name.file, str(name))
    except ModelNotFound:
        return None
    if chosen.entry is None and not any(file in present for file in _TOKENIZERS):
        return None
    return entry_path(directory, chosen)


def entry_path(directory: Path, chosen: Selection) -> Path:
    """What a loader opens: the GGUF file (the first part of a split one), or the directory itself."""
    return directory / chosen.entry if chosen.entry else directory


def models() -> Iterator[tuple[HubName, Path, tuple[Path, ...]]]:
    """Every complete model in the cache: its name, the path to open, and its files."""
    for root in sorted(machine.hub_cache().glob("models--*--*")):
        repo = root.name.removeprefix("models--").replace("--", "/", 1)
        named: dict[str, str] = {}
        for ref in sorted(path for path in (root / "refs").rglob("*") if path.is_file()):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                commit = ref.read_text(encoding="ascii").strip()
                revision = ref.relative_to(root / "refs").as_posix()
                if revision == "main" or commit not in named:
                    named[commit] = revision
        for directory in sorted((root / "snapshots").glob("*")):
            name = HubName(repo, named.get(directory.name, directory.name[:12]))
            for chosen, file in _models(directory, str(name)):
                paths = tuple(directory / one for one in chosen.files)
                yield name._replace(file=file), entry_path(directory, chosen), paths


def _models(directory: Path, where: str) -> Iterator[tuple[Selection, str]]:
    present = files(directory)
    gguf = [model for model in gguf_models(present) if not model.missing]
    tags = [model.quantization for model in gguf]
    for model, tag in zip(gguf, tags, strict=True):
        yield Selection(model.parts, model.name), tag if tag and tags.count(tag) == 1 else model.name
    rest = {file: size for file, size in present.items() if not file.endswith(".gguf")}
    with contextlib.suppress(ValueError):
        yield select(rest, "", where), ""


def link(repo: str, commit: str, file: str, etag: str) -> None:
    """Makes snapshots/<commit>/<file> stand for the blob etag; where links are not possible the blob moves there."""
    root = repository(repo)
    pointer = root / "snapshots" / commit / file
    if pointer.exists():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    blob = root / "blobs" / etag
    with contextlib.suppress(FileNotFoundError):
        pointer.unlink()  # a link to a blob that is gone
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)


def set_ref(repo: str, revision: str, commit: str) -> None:
    """Records the commit that revision stands at. Called last, so that a name never points to half a model."""
    if revision == commit:
        return
    ref = repository(repo) / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    partial = ref.with_name(ref.name + PARTIAL)
    partial.write_text(commit, encoding="ascii")
    os.replace(partial, ref)


def remove(name: HubName) -> int:
    """Deletes the model called name: its links, the blobs no other link needs, and what becomes empty. Bytes freed.

    Raises ModelNotFound when the cache does not hold it.
    """
    directory = snapshot(name)
    mine = [one for one in models() if directory is not None and directory in (one[1], *one[1].parents)]
    chosen = [one for one in mine if not name.file or _is_file(one, name.file)]
    if directory is None or not chosen:
        raise ModelNotFound(f"{name} is not in {machine.hub_cache()}: `herder list` shows what is")
    if not name.file and len(chosen) > 1:
        choices = ", ".join(str(one[0]) for one in chosen)
        raise ModelNotFound(f"{name} holds {len(chosen)} models here: name one of them, {choices}")
    kept = {path for one in mine if one not in chosen for path in one[2]}
    last = len(mine) == len(chosen)
    doomed = [p for p in directory.rglob("*") if not p.is_dir()] if last else list(chosen[0][2])
    for path in doomed:
        if path not in kept:
            path.unlink()
    freed = _drop_unused_blobs(repository(name.repo))
    _drop_empty(repository(name.repo))
    return freed


def _is_file(model: tuple[HubName, Path, tuple[Path, ...]], wanted: str) -> bool:
    found, path, _ = model
    return wanted.upper() == found.file.upper() or wanted == path.name


def _drop_unused_blobs(root: Path) -> int:
    used = {path.resolve() for path in (root / "snapshots").rglob("*") if path.is_symlink()}
    freed = 0
    for blob in (root / "blobs").glob("*"):
        # Another tool's download under way is its own business; ours cannot be: the caller holds our lock.
        if blob.resolve() not in used and not blob.name.endswith(".incomplete"):
            freed += blob.lstat().st_size
            blob.unlink()
    return freed


def _drop_empty(root: Path) -> None:
    """Removes snapshots without a file, refs to snapshots that are gone, and the repository when nothing is left."""
    import shutil

    for directory in (root / "snapshots").glob("*"):
        if not any(not path.is_dir() for path in directory.rglob("*")):
            shutil.rmtree(directory)
    commits = {directory.name for directory in (root / "snapshots").glob("*")}
    for ref in [path for path in (root / "refs").rglob("*") if path.is_file()]:
        if ref.read_text(encoding="ascii", errors="replace").strip() not in commits:
            ref.unlink()
    if not commits:
        shutil.rmtree(root)
