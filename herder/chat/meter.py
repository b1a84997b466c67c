"""What rendering a template may cost, and how large a value may grow: see sandbox.py for how it is asked."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Set, ValuesView
from types import GeneratorType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

BASE_BUDGET = 250_000  # well under a second of the worst there is
BASE_TEXT = 1 << 20  # characters in one string
BASE_ITEMS = 100_000  # what one list or object may weigh: its items, and theirs, and a sixteenth of their characters
MAX_INT_BITS = 256
MAX_WIDTH = 1000  # of padding, indentation, batches

_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # in a format: a width of four digits, or one that is an argument


class Meter:
    """What one rendering may still cost, and how large a value may be."""

    def __init__(self, *inputs: Any) -> None:
        self._weights: dict[int, int] = {}  # id -> weight of the containers in the input, which outlive the rendering
        self.max_items = self.max_text = 1 << 62
        size = sum(map(self._remember, inputs))
        self.left = BASE_BUDGET + 16 * size
        self.max_text = BASE_TEXT + 64 * size
        self.max_items = BASE_ITEMS + 4 * size

    def _remember(self, value: Any) -> int:
        if isinstance(value, dict):
            weight = 1 + sum(self._remember(key) + self._remember(inner) for key, inner in value.items())
        elif isinstance(value, list | tuple):
            weight = 1 + sum(map(self._remember, value))
        else:
            return self.weight(value)
        self._weights[id(value)] = weight
        return weight

    def weight(self, value: Any) -> int:
        """The size of a value as an operation that goes through all of it sees it: shared parts count every time."""
        total = 0
        level = [value]
        while level:
            total += len(level)
            inner: list[Any] = []
            for one in level:
                if isinstance(one, str):
                    total += len(one) >> 4
                elif isinstance(one, dict | list | tuple):
                    known = self._weights.get(id(one))
                    if known is not None:
                        total += known
                    elif isinstance(one, dict):
                        inner += one.keys()
                        inner += one.values()
                    else:
                        inner += one
                    if total + len(inner) > self.max_items:
                        raise SecurityError(f"a value grows beyond {self.max_items} items")
                elif isinstance(one, Namespace):
                    raise SecurityError("a namespace inside another value")
            level = inner
        if total > self.max_items:
            raise SecurityError(f"a value grows beyond {self.max_items} items")
        return total

    def charge(self, value: Any) -> Any:
        """Called with the value of every expression, when it has been computed. Returns it."""
        cost = 1
        if isinstance(value, str):
            size = len(value)
            if size > self.max_text:
                raise SecurityError(f"a string grows beyond {self.max_text} characters")
            cost += size >> 5
        elif isinstance(value, dict | list | tuple):
            if id(value) not in self._weights:
                cost += self.weight(value) >> 3
        elif isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise SecurityError("a number grows too large")
        elif isinstance(value, range | Set | ValuesView):
            cost += len(value) >> 3
        self.spend(cost)
        return value

    def whole(self, value: Any) -> Any:
        """In place of `charge` where the operation goes through the whole value: comparing it, writing it out."""
        if isinstance(value, dict | list | tuple):
            self.spend(self.weight(value) >> 3)
        return self.charge(value)

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise SecurityError("it takes too many steps: does it loop?")

    def text(self, size: int) -> None:
        """Before a string of this size is made."""
        if size > self.max_text:
            raise SecurityError(f"a string grows beyond {self.max_text} characters")

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks its arguments first, and whose lazy results cost a step an item."""

        @functools.wraps(function)  # keeps Jinja's mark of which first argument it wants
        def call(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if hasattr(function, "jinja_pass_arg") else args
            given = tuple(map(self._listed, given))
            for value in (*given, *kwargs.values()):
                if isinstance(value, dict | list | tuple | str):
                    self.spend(self.weight(value) >> 2)
            check = _CHECKS.get(name)
            if check is not None:
                check(self, *given, **kwargs)
            result = function(*args[: len(args) - len(given)], *given, **kwargs)
            return self._metered(result) if isinstance(result, GeneratorType) else result

        return call

    def _listed(self, value: Any) -> Any:
        """A generator's items, so that they can be weighed."""
        return list(value) if isinstance(value, GeneratorType) else value

    def _metered(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(1)
            yield item


# Operations that can make much of little: each check runs before the operation, with its arguments ------------------
def _check_width(meter: Meter, value: Any, width: Any = 0, *_: Any, **kwargs: Any) -> None:
    for number in (width, *kwargs.values()):
        if isinstance(number, int) and abs(number) > MAX_WIDTH:
            raise SecurityError(f"a width of {number}")


def _check_indent(meter: Meter, s: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    _check_width(meter, s, width)
    text = str(s)
    meter.text(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else MAX_WIDTH))


def _check_replace(meter: Meter, s: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    s, old, new = str(s), str(old), str(new)
    meter.text(len(s) + (s.count(old) + 1) * len(new))


def _check_join(meter: Meter, value: Any, d: Any = "", *_: Any, **__: Any) -> None:
    size = len(value) if hasattr(value, "__len__") else 0
    meter.text(size * len(str(d)))


def check_format(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
    text = str(value)
    if _WIDE.search(text):
        raise SecurityError("a width in a format")
    weight = meter.weight([*args, kwargs])
    meter.spend(weight >> 3)
    meter.text(len(text) + (text.count("%") + text.count("{")) * 16 * weight)


def _check_sum(meter: Meter, iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum of what is not numbers")


_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_width,
    "center": _check_width,
    "format": check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_width,
    "slice": _check_width,
    "sum": _check_sum,
}
METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "ljust": _check_width,
    "rjust": _check_width,
    "zfill": _check_width,
    "format": check_format,
    "replace": _check_replace,
    "join": lambda meter, self, items: _check_join(meter, items, self),
}
