"""Where the vocabularies lie that packages on PyPI ship."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package(name: str) -> Path:
    """The directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"pip install {name}"
    return Path(spec.origin).parent


def mistral_file(name: str) -> Path:
    return package("mistral_common") / "data" / name
