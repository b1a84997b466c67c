"""Jinja without trust: a chat template comes from a stranger's file and runs in our process.

Jinja's own sandbox keeps a template from Python's internals. This adds bounds, and needs neither a clock nor a thread
for it: the compiler is told to wrap every expression in a call to a meter, which takes the value's size off a budget
and refuses values that are too large. What an operation costs is linear in the sizes of its operands and its result,
which are themselves expressions, and so already paid for; the few operations of which that is not true (repetition,
powers, padding, formatting, joining, replacing) are checked before they run. A loop pays for each turn, recursion for
each call. A budget, not a clock: whether a template fails does not depend on the machine.

Filters, tests and methods are lists of what is allowed; nothing is loaded, included or imported. Conventions are those
of Hugging Face's apply_chat_template: trim_blocks, lstrip_blocks, break and continue, {% generation %},
raise_exception, strftime_now, tojson without HTML escapes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Set, ValuesView
from datetime import datetime
from types import BuiltinMethodType, CodeType, FunctionType, GeneratorType, MethodType
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

MAX_SOURCE = 100_000  # characters; the longest known templates have 30,000
BASE_BUDGET = 400_000  # about half a second of the worst there is
BASE_TEXT = 1 << 20  # characters in one string
BASE_ITEMS = 100_000  # what one list or object may weigh: its items, and theirs, and a sixteenth of their characters
MAX_INT_BITS = 256
MAX_WIDTH = 1000  # of padding, indentation, batches

GENERATION = ("\ud800", "\ud801")  # around what {% generation %} marks; text cannot hold them (see provenance.py)

_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # in a format: a width of four digits, or one that is an argument
_FILTERS = (
    *("abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string"),
    *("sum", "title", "trim", "truncate", "unique", "upper", "wordcount"),
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha"),
            *("isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace"),
            *("istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
            *("replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
            *("startswith", "strip", "swapcase", "title", "upper", "zfill"),
        )
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    range: frozenset(("count", "index")),
    LoopContext: frozenset(("changed", "cycle")),
}


class Refused(JinjaError):
    """raise_exception: the template itself refuses its input."""


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
        stack = [value]
        while stack:
            one = stack.pop()
            total += 1
            if isinstance(one, str):
                total += len(one) >> 4
            elif isinstance(one, dict | list | tuple):
                known = self._weights.get(id(one))
                if known is not None:
                    total += known
                elif isinstance(one, dict):
                    stack += one.keys()
                    stack += one.values()
                else:
                    stack += one
            elif isinstance(one, Namespace):
                raise SecurityError("a namespace inside another value")
            if total + len(stack) > self.max_items:
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
            cost += self.weight(value) >> 4
        elif isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise SecurityError("a number grows too large")
        elif isinstance(value, range | Set | ValuesView):
            cost += len(value) >> 3
        self.spend(cost)
        return value

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


def _check_format(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
    text = str(value)
    if _WIDE.search(text):
        raise SecurityError("a width in a format")
    fields = text.count("%") + text.count("{")
    meter.text(len(text) + fields * 16 * meter.weight([*args, kwargs]))


def _check_sum(meter: Meter, iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum of what is not numbers")


_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_width,
    "center": _check_width,
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_width,
    "slice": _check_width,
    "sum": _check_sum,
}
_METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "ljust": _check_width,
    "rjust": _check_width,
    "zfill": _check_width,
    "format": _check_format,
    "replace": _check_replace,
    "join": lambda meter, self, items: _check_join(meter, items, self),
}


class _Generator(CodeGenerator):
    """Jinja's compiler, which wraps each expression in charge(...) and computes nothing at compile time."""

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("charge = environment.meter.charge")

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        value = isinstance(node, nodes.Expr) and not isinstance(node, nodes.Slice | nodes.NSRef)
        if not value or getattr(node, "ctx", "load") != "load":
            return super().visit(node, *args, **kwargs)
        self.write("charge(")
        super().visit(node, *args, **kwargs)
        self.write(")")
        return None

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.ExprStmt(nodes.Const(None)))  # a turn costs a step, whatever it does
        super().visit_For(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        raise nodes.Impossible()


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says, for a loss mask."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in GENERATION)
        return nodes.Scope([begin, *body, end]).set_lineno(line)


class _Namespace(Namespace):
    """Holds no other namespace, and does not show what it holds: neither could be weighed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Namespace):
            raise SecurityError("a namespace inside a namespace")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. `meter` belongs to one rendering: see `run`."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("*", "**", "%"))
    meter: Meter

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols], cache_size=0
        )
        self.filters = {name: FILTERS[name] for name in _FILTERS} | {"tojson": _tojson}
        self.globals = {
            "range": safe_range,
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def run(self, code: CodeType, variables: Mapping[str, Any], meter: Meter) -> str:
        """The text that a compiled template gives. Raises whatever goes wrong in it."""
        here = self.overlay()
        here.meter = meter
        here.filters = {name: meter.guarded(name, function) for name, function in self.filters.items()}
        template = here.template_class.from_code(here, code, dict(self.globals))
        pieces = []
        size = 0
        for piece in template.generate(variables):
            size += len(piece)
            meter.text(size)
            pieces.append(piece)
        return "".join(pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(self.meter, left, right)
        elif operator == "**":
            if not all(isinstance(x, int | float) and abs(x) <= 1 << 32 for x in (left, right)) or abs(right) > 64:
                raise SecurityError("a power too large")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    limit = self.meter.max_text if isinstance(many, str) else self.meter.max_items
                    if len(many) * times > limit:
                        raise SecurityError(f"a value grows beyond {limit} items")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls what is allowed to be called: macros, our own functions, and the methods of `_METHODS`."""
        owner = getattr(function, "__self__", None)
        if isinstance(function, BuiltinMethodType | MethodType) and owner is not None:
            if not any(isinstance(owner, kind) and function.__name__ in names for kind, names in _METHODS.items()):
                raise SecurityError(f"calling {type(owner).__name__}.{function.__name__}")
            check = _METHOD_CHECKS.get(function.__name__) if isinstance(owner, str) else None
            if check is not None:
                args = tuple(list(a) if isinstance(a, GeneratorType) else a for a in args)
                check(self.meter, owner, *args, **kwargs)
        elif isinstance(function, FunctionType) and isinstance(format_of := _wrapped(function), str):
            _check_format(self.meter, format_of, *args, **kwargs)
        elif not isinstance(function, Macro | LoopContext | Undefined) and function not in self.globals.values():
            raise SecurityError(f"calling {type(function).__name__}")
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's sandboxed str.format, found where a method is looked up."""
        if getattr(value, "__name__", None) == "format_map":
            raise SecurityError("calling str.format_map")
        return super().wrap_str_format(value)


def _wrapped(function: FunctionType) -> Any:
    """The string whose sandboxed `format` this is; see wrap_str_format."""
    return getattr(getattr(function, "__wrapped__", None), "__self__", None)


def _raise_exception(message: Any) -> None:
    raise Refused(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"\d{3}", format):
        raise SecurityError("a width in a date format")
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if indent is not None and (not isinstance(indent, int) or abs(indent) > 16):
        raise SecurityError(f"an indentation of {indent!r}"[:60])
    if separators is not None and len("".join(map(str, separators))) > 16:
        raise SecurityError("separators too long")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
