"""Jinja without trust: a chat template comes from a stranger's file and runs in our process.

Jinja's own sandbox keeps a template from Python's internals. This adds bounds, and needs neither a clock nor a thread
for it: the compiler is told to wrap every expression in a call to a meter, which takes the value's size off a budget
and refuses values that are too large. What an operation costs is linear in the sizes of its operands and its result,
which are themselves expressions, and so already paid for; the few operations of which that is not true (repetition,
powers, padding, formatting, joining, replacing) are checked before they run. A loop pays for each turn, recursion for
each call. The lists and objects of the input are cheap to name and paid for when something goes through all of them.
A budget, not a clock: whether a template fails does not depend on the machine.

Filters, tests and methods are lists of what is allowed; nothing is loaded, included or imported. Conventions are those
of Hugging Face's apply_chat_template: trim_blocks, lstrip_blocks, break and continue, {% generation %},
raise_exception, strftime_now, tojson without HTML escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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

from herder.chat.meter import METHOD_CHECKS, Meter, check_format

MAX_SOURCE = 64_000  # characters; the longest known templates have 30,000

GENERATION = ("\ud800", "\ud801")  # around what {% generation %} marks; text cannot hold them (see provenance.py)

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


class _Generator(CodeGenerator):
    """Jinja's compiler, which wraps each expression in charge(...) and computes nothing at compile time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._whole: set[int] = set()  # ids of the nodes whose values are gone through

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("charge = environment.meter.charge")
        self.writeline("whole = environment.meter.whole")

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        value = isinstance(node, nodes.Expr) and not isinstance(node, nodes.Slice | nodes.NSRef)
        if not value or getattr(node, "ctx", "load") != "load":
            return super().visit(node, *args, **kwargs)
        self.write("whole(" if id(node) in self._whole else "charge(")
        super().visit(node, *args, **kwargs)
        self.write(")")
        return None

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._whole.update((id(node.expr), *(id(operand.expr) for operand in node.ops)))
        super().visit_Compare(node, frame)

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:
        self._whole.update(map(id, (node.node, *node.args)))
        super().visit_Test(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._whole.update(map(id, node.nodes))
        super().visit_Concat(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        self._whole.update(map(id, node.nodes))
        super().visit_Output(node, frame)

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
            check_format(self.meter, left, right)
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
            self.meter.whole(owner)
            check = METHOD_CHECKS.get(function.__name__) if isinstance(owner, str) else None
            if check is not None:
                args = tuple(list(a) if isinstance(a, GeneratorType) else a for a in args)
                check(self.meter, owner, *args, **kwargs)
        elif isinstance(function, FunctionType) and isinstance(format_of := _wrapped(function), str):
            check_format(self.meter, format_of, *args, **kwargs)
        elif not isinstance(function, Macro | LoopContext | Undefined) and function not in self.globals.values():
            raise SecurityError(f"calling {type(function).__name__}")
        return super().call(context, function, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"reaching for {type(obj).__name__}.{attribute}")

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
