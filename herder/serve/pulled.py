"""What clients have pulled, by the names they pulled it under: a file, so that it is served after a restart, too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herder.core.errors import StorageError
from herder.serve.config import ModelSpec
from herder.weights.lock import exclusive
from herder.weights.registry import MODELS, parse_hub_name
from herder.weights.storage import sync_directory

MOST = 1000  # models
BYTES = 1 << 20  # of the file


@dataclass(frozen=True, slots=True)
class Pulled:
    """The file: a JSON object, from a served name to the short name or hub name that was fetched. Servers share it."""

    path: Path

    def specs(self) -> list[ModelSpec]:
        """The oldest first. Raises StorageError for a file that is damaged: what is served is not guessed."""
        return [_spec(name, source) for name, source in self._read().items()]

    def add(self, spec: ModelSpec) -> None:
        """Raises StorageError when it cannot be written, or there are too many."""
        self._change(lambda found: found | {spec.name: spec.source})

    def remove(self, name: str) -> None:
        """Nothing where it is not there. Raises StorageError when it cannot be written."""
        self._change(lambda found: {known: source for known, source in found.items() if known != name})

    def _change(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with exclusive(self.path.with_suffix(".lock")):
                before = self._read()
                after = change(before)
                if after == before:
                    return
                if len(after) > MOST:
                    raise StorageError(f"{self.path} names {MOST} models that clients have pulled: delete one first")
                made = self.path.with_suffix(".new")
                with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                    json.dump(after, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(made, self.path)
                sync_directory(self.path.parent)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from None

    def _read(self) -> dict[str, str]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            found: Any = json.loads(data) if len(data) <= BYTES else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, Mapping) or not all(_is_name(*pair) for pair in found.items()):
            raise StorageError(
                f"{self.path} is damaged: delete it, and pull again what it named (nothing is fetched twice)"
            )
        return dict(found)


def _is_name(name: Any, source: Any) -> bool:
    """Never a path: what a client has named is no file of this machine's."""
    if not (isinstance(name, str) and isinstance(source, str) and name):
        return False
    return source in MODELS or (not source.startswith((".", "/", "~")) and parse_hub_name(source) is not None)


def _spec(name: str, source: str) -> ModelSpec:
    return ModelSpec(name, source, aliases=(source,) if source != name else ())
