"""Values of a request's fields, read with their types: what a client sent, or the FieldError that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from herder.chat.message import check_json
from herder.core.errors import UsageError
from herder.serve.fields import FieldError


def text(value: Any, where: str, most: int | None = None) -> str:
    """most: characters."""
    if not isinstance(value, str):
        raise FieldError(f"{where} is {kind(value)}: expected text", where)
    if most is not None and len(value) > most:
        raise FieldError(f"{where} has {len(value)} characters: at most {most} are taken", where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(value[error.start])
        raise FieldError(f"{where} holds a lone surrogate (U+{surrogate:04X}): send valid UTF-8", where) from None
    return value


def boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{where} is {kind(value)}: expected true or false", where)
    return value


def integer(value: Any, where: str, least: int | None = None, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        if not (isinstance(value, float) and value.is_integer()):  # JSON has one kind of number
            raise FieldError(f"{where} is {kind(value)}: expected an integer", where)
        value = int(value)
    _bounded(value, where, least, most)
    return int(value)


def number(value: Any, where: str, least: float | None = None, most: float | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(f"{where} is {kind(value)}: expected a number", where)
    _bounded(value, where, least, most)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise FieldError(f"{where} is {kind(value)}: expected a finite number", where)
    return found


def one_of(value: Any, where: str, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise FieldError(f"{where} is {kind(value)}: expected {' or '.join(known)}", where)
    return value


def listed(value: Any, where: str, most: int | None = None, least: int = 0) -> Sequence[Any]:
    """A list. least, most: elements."""
    if not isinstance(value, list | tuple):
        raise FieldError(f"{where} is {kind(value)}: expected a list", where)
    if len(value) < least:
        raise FieldError(f"{where} is empty: give at least one", where)
    if most is not None and len(value) > most:
        raise FieldError(f"{where} has {len(value)} elements: at most {most} are taken", where)
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise FieldError(f"{where} is {kind(value)}: expected an object", where)
    return value


def schema(value: Any, where: str) -> dict[str, Any]:
    """A JSON Schema: any object that JSON in UTF-8 can hold, of bounded depth."""
    found = mapping(value, where)
    try:
        check_json(found, where)
    except UsageError as error:
        # The path in it may be of names that a stranger chose.
        raise FieldError("".join([c if c.isprintable() else "?" for c in str(error)])[:300], where) from None
    return dict(found)


def _bounded(value: float, where: str, least: float | None, most: float | None) -> None:
    if (least is not None and value < least) or (most is not None and value > most):
        bounds = [f"at least {least}"] if least is not None else []
        bounds += [f"at most {most}"] if most is not None else []
        raise FieldError(f"{where} is {kind(value)}: must be {' and '.join(bounds)}", where)


def kind(value: Any) -> str:
    """A value as errors show it: what a stranger sent, short, on one line of ASCII."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 64:
        return "a very large number"  # Python writes no integer of more than 4300 digits
    if isinstance(value, str):
        value = value[:80]
    shown = json.dumps(value)  # true, null, "text": as the client wrote it
    return shown if len(shown) <= 60 else shown[:60] + "..."
