"""herder version."""

from __future__ import annotations

from herder.cli.command import Command, Parsed
from herder.cli.pull import JSON
from herder.cli.terminal import print_json


def number() -> str:
    """The installed version; the source tree's own where nothing is installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("herder")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def version(parsed: Parsed) -> int:
    if parsed.json:
        print_json({"version": number()})
    else:
        print(f"herder {number()}")
    return 0


COMMANDS = {"version": Command(name="version", summary="Print the version", run=version, options=(JSON,))}
