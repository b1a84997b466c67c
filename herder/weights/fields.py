"""Typed, bounded reading of a file's keys. Remembers which keys were read, so that the rest can be refused by name."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final

from herder.core.errors import ModelFileError, UnsupportedModel

REQUIRED: Final = object()  # as a default: the key must be there
INT32_MAX = 2**31 - 1
MAX_FLOAT = 1.7976931348623157e308


class Fields:
    """The keys of one JSON object or one GGUF namespace. A key whose value is None counts as absent.

    where: names the file in errors. prefix: put before each key (`llama.`). Every getter raises a ModelFileError that
    names file, key and value when the value has the wrong type or lies outside its bounds.
    """

    def __init__(self, where: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.where = where
        self.prefix = prefix
        self._values = values
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it is, or None."""
        self._read.add(key)
        return self._values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        """Whether the key is there, if only with the value None."""
        return self.prefix + key in self._values

    def unread(self) -> list[str]:
        """Keys under the prefix that no getter has asked for and that have a value, sorted, without the prefix."""
        keys = (k[len(self.prefix) :] for k, v in self._values.items() if k.startswith(self.prefix) and v is not None)
        return sorted(k for k in keys if k not in self._read)

    def integer(self, key: str, default: Any = REQUIRED, low: int = 1, high: int = INT32_MAX) -> Any:
        """An int between low and high, or the default."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, value, f"expected a whole number between {low} and {high}")
        return value

    def uniform(self, key: str, default: Any = REQUIRED, high: int = INT32_MAX) -> Any:
        """An int, or an array of equal ints (one per layer), at least 1. Raises UnsupportedModel when they differ."""
        value = self.get(key)
        if isinstance(value, array | list) and len(value) > 0 and all(type(v) is int for v in value):
            if any(v != value[0] for v in value):
                raise UnsupportedModel(
                    f"{self.where}: {self.prefix}{key} differs between layers ({min(value)} to {max(value)}): "
                    "only models with the same value in every layer are supported"
                )
            value = value[0]
        if value is None:
            return self._default(key, default)
        if type(value) is not int or not 1 <= value <= high:
            raise self.wrong(key, value, f"expected a whole number between 1 and {high}")
        return value

    def number(self, key: str, default: Any = REQUIRED, low: float = 0.0) -> Any:
        """A finite float above `low`, or the default."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if not _finite(value) or value <= low:
            raise self.wrong(key, value, f"expected a finite number above {low:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(key, value, "expected true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if type(value) is not str:
            raise self.wrong(key, value, "expected a string")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers above 0."""
        value = self.get(key)
        if value is None:
            self._default(key, REQUIRED)
        ok = isinstance(value, list | array) and len(value) == count
        if not ok or not all(_finite(v) and v > 0 for v in value):
            raise self.wrong(key, value, f"expected {count} finite numbers above 0")
        return tuple(float(v) for v in value)

    def neutral(self, key: str, allowed: Iterable[Any], meaning: str) -> None:
        """Refuses (UnsupportedModel) a key that changes the computation, unless its value changes nothing."""
        value = self.get(key)
        if value is not None and value not in tuple(allowed):
            raise UnsupportedModel(f"{self.where}: {self.prefix}{key} = {short(value)} ({meaning}) is not supported")

    def wrong(self, key: str, value: Any, expected: str) -> ModelFileError:
        return ModelFileError(f"{self.where}: {self.prefix}{key} is {short(value)}: {expected}")

    def _default(self, key: str, default: Any) -> Any:
        if default is REQUIRED:
            raise ModelFileError(f"{self.where}: {self.prefix}{key} is missing: the file is incomplete, get it again")
        return default


def _finite(value: Any) -> bool:
    """A number that a float can hold. JSON's whole numbers may have any length."""
    return type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT


def short(value: Any) -> str:
    """A value on one line of an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
