"""What this machine offers and what its user has set: the only reader of environment variables and of the system.

Everything is read when it is asked for, never at import. Sources on Linux: sched_getaffinity(2), cgroups v1 and v2
(`/sys/fs/cgroup`), `/proc/meminfo`, `/sys/kernel/mm/transparent_hugepage`, `/sys/devices/system/cpu`. Elsewhere the
nearest portable answer, or None where there is none.

Variables:
    HERDER_HOME       everything Herder keeps; default XDG_CACHE_HOME/herder, else ~/.cache/herder
    HERDER_OFFLINE    1 refuses every use of the network, like --offline (HF_HUB_OFFLINE counts too)
    XDG_STATE_HOME    chat history and saved chats, when HERDER_HOME is not set; default ~/.local/state
    NO_COLOR          any value: no colour (https://no-color.org); TERM=dumb does the same
    HF_ENDPOINT, HF_HUB_CACHE, HF_HOME   as in huggingface_hub. HF_TOKEN and the file that `hf auth login` writes
                      are left to huggingface_hub itself: Herder never holds a token.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from herder.core.errors import UsageError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


class Memory(NamedTuple):
    """Bytes this process may use. available is None where the system does not tell."""

    total: int
    available: int | None
    limited: bool  # a cgroup allows less than the machine has


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{name} is {os.environ[name]!r}: use 1 or 0")


def _directory(name: str) -> Path | None:
    """An environment variable that names a directory; relative ones are ignored for XDG, as its specification says."""
    value = os.environ.get(name, "")
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_absolute():
        return None if name.startswith("XDG_") else Path.cwd() / path
    return path


def user_home() -> Path:
    """The user's home directory; UsageError where the system knows none."""
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError("this user has no home directory: set HERDER_HOME to a directory to keep models in") from None


def home() -> Path:
    """Where Herder keeps models: HERDER_HOME, else XDG_CACHE_HOME/herder, else ~/.cache/herder. May not exist yet."""
    if (own := _directory("HERDER_HOME")) is not None:
        return own
    return (_directory("XDG_CACHE_HOME") or user_home() / ".cache") / "herder"


def state_home() -> Path:
    """Where chat history and saved chats go: HERDER_HOME/state, else XDG_STATE_HOME/herder or ~/.local/state/herder."""
    if (own := _directory("HERDER_HOME")) is not None:
        return own / "state"
    return (_directory("XDG_STATE_HOME") or user_home() / ".local" / "state") / "herder"


def hub_cache() -> Path:
    """The cache that huggingface_hub and the tools built on it share: HF_HUB_CACHE, else HF_HOME/hub."""
    if (own := _directory("HF_HUB_CACHE")) is not None:
        return own
    if (hf_home := _directory("HF_HOME")) is not None:
        return hf_home / "hub"
    return (_directory("XDG_CACHE_HOME") or user_home() / ".cache") / "huggingface" / "hub"


def hub_endpoint() -> str:
    """The hub to ask, without a trailing slash."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def offline() -> bool:
    """Whether the environment forbids the network (HERDER_OFFLINE or HF_HUB_OFFLINE)."""
    return _flag("HERDER_OFFLINE") or os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE


def no_colour() -> bool:
    """Whether the user asked for no colour anywhere (NO_COLOR, TERM=dumb)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def shell() -> str:
    """The base name of the user's login shell, empty if unknown."""
    return os.path.basename(os.environ.get("SHELL", ""))


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with changes, for a child process (pip) that must see the user's own settings."""
    return {**os.environ, **changes}


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _cgroups(controller: str, root: str) -> list[tuple[str, int]]:
    """(directory, version) of this process's cgroup and of every parent, nearest first, for one controller.

    A path that /proc/self/cgroup names may not exist below a container's mount: the mount's own root is always listed.
    """
    found: list[tuple[str, int]] = []
    for line in (_read(f"{root}/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:
            mount, version = f"{root}/sys/fs/cgroup", 2
        elif controller in names.split(","):
            mount, version = f"{root}/sys/fs/cgroup/{controller}", 1
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        found += [("/".join([mount, *parts[:depth]]), version) for depth in range(len(parts), -1, -1)]
    return found


def cpu_quota(root: str = "") -> float | None:
    """Cores' worth of time that cgroups allow this process, None without a limit (cpu.max, cpu.cfs_quota_us).

    root is put before /proc and /sys, for tests.
    """
    limits: list[float] = []
    for directory, version in _cgroups("cpu", root):
        if version == 2:
            words = (_read(f"{directory}/cpu.max") or "max").split()
        else:
            words = [_read(f"{directory}/cpu.cfs_{name}_us") or "-1" for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):  # not "max", not -1
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def affinity() -> tuple[int, ...]:
    """Numbers of the CPUs this process may run on."""
    sched_getaffinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return tuple(sorted(sched_getaffinity(0))) if sched_getaffinity else tuple(range(os.cpu_count() or 1))


def cores() -> int:
    """How many CPUs this process may keep busy: affinity, cut to the cgroup's quota (rounded down, at least 1).

    Rounded down because compute threads wait for one another: a thread without a whole core stalls all of them.
    """
    count = len(affinity())
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, int(quota)))


def physical_cores() -> int:
    """cores() with SMT siblings counted once; equal to cores() where the topology is unknown."""
    siblings: set[str] = set()
    for cpu in affinity():
        group = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(group if group else str(cpu))
    return min(cores(), len(siblings))


def memory(root: str = "") -> Memory:
    """Memory of this machine, cut to what cgroups leave this process. root is put before /proc and /sys, for tests."""
    fields: dict[str, int] = {}
    for line in (_read(f"{root}/proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            fields[key] = int(number[0]) * 1024
    total = fields.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = fields.get("MemAvailable")
    limited = False
    for directory, version in _cgroups("memory", root):
        limit_file, usage_file = _MEMORY_FILES[version]
        limit = _read(f"{directory}/{limit_file}") or "max"
        if not limit.isdigit() or int(limit) >= total:  # "max", or v1's huge number
            continue
        limited, total = True, int(limit)
        # Page cache counts as used in a cgroup but gives way when memory is needed, as in MemAvailable.
        used = int(_read(f"{directory}/{usage_file}") or 0) - _page_cache(_read(f"{directory}/memory.stat") or "")
        left = max(0, total - max(0, used))
        available = left if available is None else min(available, left)
    return Memory(total, available, limited)


_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}


def _page_cache(stat: str) -> int:
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    # v1's plain keys leave out child groups; its total_* keys do not.
    return sum(int(values.get(f"total_{key}", values.get(key, 0))) for key in ("inactive_file", "active_file"))


def free_disk(path: Path) -> int:
    """Bytes an ordinary user can still write where path is, or where its nearest existing parent is."""
    import shutil

    for place in (path, *path.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return shutil.disk_usage(path.anchor or ".").free


def huge_pages() -> str | None:
    """The kernel's transparent huge page setting (always, madvise, never), None where there is none."""
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    start, _, rest = text.partition("[")
    return rest.partition("]")[0] or None if start != text else None


def cpu_name() -> str:
    """What the maker calls this CPU, as far as the system tells."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"} and value.strip():
            return value.strip()
    import platform

    return platform.processor() or platform.machine() or "unknown"


def platform_name() -> str:
    """System, release and architecture: "Linux 6.8.0 x86_64"."""
    import platform

    return f"{platform.system()} {platform.release()} {platform.machine()}"
