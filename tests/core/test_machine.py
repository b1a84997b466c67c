"""What the machine offers, read from made-up /proc and /sys trees and environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from herder.core import machine
from herder.core.errors import UsageError

VARIABLES = [
    "HERDER_HOME",
    "HERDER_OFFLINE",
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
    "TERM",
]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_directories_by_default(tmp_path: Path) -> None:
    assert machine.home() == tmp_path / ".cache/herder"
    assert machine.state_home() == tmp_path / ".local/state/herder"
    assert machine.hub_cache() == tmp_path / ".cache/huggingface/hub"


def test_xdg_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert machine.home() == Path("/c/herder")
    assert machine.state_home() == Path("/s/herder")
    assert machine.hub_cache() == Path("/c/huggingface/hub")


def test_relative_xdg_directories_are_ignored_as_their_specification_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert machine.home() == tmp_path / ".cache/herder"


def test_herder_home_holds_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERDER_HOME", "~/h")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert machine.home() == tmp_path / "h"
    assert machine.state_home() == tmp_path / "h/state"
    monkeypatch.setenv("HERDER_HOME", "models")
    monkeypatch.chdir(tmp_path)
    assert machine.home() == tmp_path / "models"


def test_hub_cache_follows_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/hf")
    assert machine.hub_cache() == Path("/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    assert machine.hub_cache() == Path("/elsewhere")


@pytest.mark.parametrize("changes", [{}, {"HF_HOME": "/hf"}, {"HF_HUB_CACHE": "/other"}, {"XDG_CACHE_HOME": "/x"}])
def test_hub_cache_is_the_one_huggingface_hub_uses(changes: dict[str, str]) -> None:
    code = (
        "from herder.core import machine; from huggingface_hub.constants import HF_HUB_CACHE\n"
        "print(machine.hub_cache() == type(machine.hub_cache())(HF_HUB_CACHE))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **changes}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"


def test_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.hub_endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8080/")
    assert machine.hub_endpoint() == "http://127.0.0.1:8080"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("ON", True), ("0", False), ("", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("HERDER_OFFLINE", value)
    assert machine.offline() is expected


def test_offline_also_from_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not machine.offline()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert machine.offline()


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERDER_OFFLINE", "maybe")
    with pytest.raises(UsageError, match="HERDER_OFFLINE is 'maybe': use 1 or 0"):
        machine.offline()


def test_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not machine.no_colour()
    monkeypatch.setenv("NO_COLOR", "")
    assert not machine.no_colour()  # no-color.org: only when present and not empty
    monkeypatch.setenv("NO_COLOR", "0")
    assert machine.no_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert machine.no_colour()


def test_child_environment_leaves_ours_alone() -> None:
    child = machine.child_environment(TMPDIR="/elsewhere")
    assert child["TMPDIR"] == "/elsewhere"
    assert child["HOME"] == os.environ["HOME"]
    assert os.environ.get("TMPDIR") != "/elsewhere"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (  # the tightest of a group and its parents
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 50000\n",
            },
            1.0,
        ),
        (  # inside a container the named path lies outside the mount
            {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/\n", "sys/fs/cgroup/cpu.max": "0 0\n"}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert machine.cpu_quota(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (2.0, 2), (2.9, 2), (0.5, 1), (64.0, 4)])
def test_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(machine, "affinity", lambda: (0, 1, 5, 7))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.cores() == expected


def test_affinity_is_honoured() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from herder.core import machine; print(machine.cores(), machine.physical_cores())"
    )
    if sys.platform != "linux":
        pytest.skip("only Linux has sched_setaffinity: run the tests there")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "1"]


MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"


def test_memory_of_the_machine(tmp_path: Path) -> None:
    found = machine.memory(tree(tmp_path, {"proc/meminfo": MEMINFO}))
    assert found == (16_000_000 * 1024, 8_000_000 * 1024, False)


def test_memory_of_a_container(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000000000\n",
        "sys/fs/cgroup/memory.current": "700000000\n",
        "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 300000000\nactive_file 100000000\n",
    }
    assert machine.memory(tree(tmp_path, files)) == (1_000_000_000, 700_000_000, True)


def test_memory_of_a_container_v1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:memory:/x\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000000000\n",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "990000000\n",
        "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 10000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine.memory(tree(tmp_path, files)) == (1_000_000_000, 20_000_000, True)


def test_memory_here() -> None:
    found = machine.memory()
    assert found.total > 2**28
    assert found.available is None or 0 <= found.available <= found.total


def test_free_disk_of_a_place_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a/b/c") == pytest.approx(machine.free_disk(tmp_path), rel=0.05)


def test_this_machine_has_names() -> None:
    assert machine.cpu_name()
    assert len(machine.platform_name().split()) >= 3
    assert machine.huge_pages() in {None, "always", "madvise", "never"}


def test_import_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import herder.core.machine;"
        "print(*({'subprocess', 'socket', 'platform', 'json', 'shutil'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
