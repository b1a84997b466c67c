"""Herder runs every Llama on hardware you own.

    import herder

    with herder.load("smollm2") as llm:
        print(llm.chat("Why is the sky blue?").text)

Importing it loads nothing: each name below is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herder.assemble import load as load
    from herder.chat.message import Message as Message
    from herder.completion import Completion as Completion
    from herder.core.errors import HerderError as HerderError
    from herder.core.request import Sampling as Sampling
    from herder.llm import LLM as LLM

_HOMES = {
    "Completion": "herder.completion",
    "HerderError": "herder.core.errors",
    "LLM": "herder.llm",
    "Message": "herder.chat.message",
    "Sampling": "herder.core.request",
    "load": "herder.assemble",
}
__all__ = ["LLM", "Completion", "HerderError", "Message", "Sampling", "load"]


def __getattr__(name: str) -> object:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("herder")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'herder' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
