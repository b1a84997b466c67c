"""How models spell tool calls in text: five notations, each written and read here.

| notation | looks like | models |
|---|---|---|
| json | `{"name": "f", "parameters": {...}}` | Llama 3.1, 3.3, 3.2 vision |
| tag | `<function=f>{...}</function>` | Llama 3.x, when asked to |
| python | `[f(a=1), g()]` | Llama 3.2 text, 3.3, 4 |
| builtin | `brave_search.call(query="...")` | Llama 3.x, after `<|python_tag|>` |
| hermes | `<tool_call>{"name": "f", "arguments": {...}}</tool_call>` | fine-tunes with ChatML |

A reader returns the calls and the text around them, or None when the text is not wholly in its notation (tag and hermes
are marked clearly enough to stand among other text). Sources: llama-models' prompt_format.md and tool_utils.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from herder.chat.message import Message, ToolCall
from herder.core.errors import UsageError

BUILTIN_TOOLS = ("brave_search", "wolfram_alpha")
CODE_INTERPRETER = "code_interpreter"
MAX_PYTHON = 1 << 16  # characters of a Python list: Python's own parser takes time and stack for more

_CONSTANTS = {"true": True, "false": False, "null": None}
_BUILTIN = re.compile(r'(\w+)\.call\((\w+)="((?:[^"\\]|\\.)*)"\)')
_TAG = re.compile(r"<function=([^<>{}\s]+)>\s*(?=\{)")
_HERMES = re.compile(r"<tool_call>\s*(?=\{)")
_CLOSE = re.compile(r"\s*(?:</function>|</tool_call>|\Z)")
_BETWEEN = re.compile(r"[\s;,]*")


class Found(NamedTuple):
    calls: tuple[ToolCall, ...]
    text: str = ""


Reader = Callable[[str], Found | None]


def read(answer: str, readers: Sequence[Reader], tools: Iterable[str] | None) -> Message:
    """The assistant's message: the first notation that fits, and whose calls are all of allowed tools, counts."""
    allowed = None if tools is None else frozenset(tools)
    for reader in readers:
        found = reader(answer)
        if found and found.calls and (allowed is None or all(call.name in allowed for call in found.calls)):
            return Message("assistant", found.text or None, found.calls)
    return Message("assistant", answer)


# json ----------------------------------------------------------------------------------------------------------------
def write_json(calls: Sequence[ToolCall]) -> str:
    """As Meta's encoder writes one call; several are joined by "; "."""
    return "; ".join([_dumps({"type": "function", "name": call.name, "parameters": call.arguments}) for call in calls])


def read_json(text: str) -> Found | None:
    """One object or several, separated by spaces, commas or semicolons, in a list or not."""
    body = text.strip()
    if not body.startswith(("{", "[")):
        return None
    calls: list[ToolCall] = []
    decoder = _decoder()
    at = 0
    while at < len(body):
        try:
            value, at = decoder.raw_decode(body, at)
        except (ValueError, RecursionError):
            return None
        for one in value if isinstance(value, list) else [value]:
            call = _call(one)
            if call is None:
                return None
            calls.append(call)
        at = _end(_BETWEEN, body, at)
    return Found(tuple(calls)) if calls else None


def _call(value: Any) -> ToolCall | None:
    """{"name", "parameters" or "arguments"}, possibly with "type" and "id", possibly inside {"function": ...}."""
    if (
        isinstance(value, dict)
        and isinstance(value.get("function"), dict)
        and value.keys() <= {"function", "type", "id"}
    ):
        value = value["function"]
    if not isinstance(value, dict) or not value.keys() <= {"name", "parameters", "arguments", "type", "id"}:
        return None
    name = value.get("name")
    arguments = value.get("parameters", value.get("arguments"))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    identity = value.get("id")
    return ToolCall(name, arguments, identity if isinstance(identity, str) else None)


# tag and hermes ------------------------------------------------------------------------------------------------------
def write_tag(calls: Sequence[ToolCall]) -> str:
    return "".join([f"<function={call.name}>{_dumps(call.arguments)}</function>" for call in calls])


def read_tag(text: str) -> Found | None:
    return _marked(text, _TAG, lambda match, value: ToolCall(match[1], value))


def read_hermes(text: str) -> Found | None:
    return _marked(text, _HERMES, lambda match, value: _call(value))


def _marked(
    text: str, pattern: re.Pattern[str], make: Callable[[re.Match[str], dict[str, Any]], ToolCall | None]
) -> Found | None:
    """Calls between marks, and the text that is left. A last mark that is not closed counts, as the end closes it."""
    calls: list[ToolCall] = []
    rest: list[str] = []
    at = 0
    decoder = _decoder()
    while match := pattern.search(text, at):
        try:
            value, end = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return None
        call = make(match, value)
        close = _CLOSE.match(text, end)
        if call is None or close is None:
            return None
        calls.append(call)
        rest.append(text[at : match.start()])
        at = close.end()
    rest.append(text[at:])
    return Found(tuple(calls), "".join(rest).rstrip()) if calls else None


# python --------------------------------------------------------------------------------------------------------------
def write_python(calls: Sequence[ToolCall]) -> str:
    """Raises UsageError for a name that is no Python identifier."""
    return "[" + ", ".join([_python_call(call) for call in calls]) + "]"


def _python_call(call: ToolCall) -> str:
    for name in (call.name, *call.arguments):
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"{name!r} is no Python identifier: call {call.name!r} in another notation than python")
    return f"{call.name}({', '.join([f'{key}={_literal(value)}' for key, value in call.arguments.items()])})"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # double quotes, as in Meta's examples; its escapes are Python's
    if isinstance(value, dict):
        return "{" + ", ".join([f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join([_literal(inner) for inner in value]) + "]"
    return repr(value)


def read_python(text: str) -> Found | None:
    """A list of calls with keyword arguments that are literals, and nothing else."""
    body = text.strip()
    if not (body.startswith("[") and body.endswith("]")) or len(body) > MAX_PYTHON:
        return None
    import ast  # takes a start-up 3 ms

    try:
        tree = ast.parse(body, mode="eval").body
        elements = tree.elts if isinstance(tree, ast.List) else []
        return Found(tuple([_from_ast(element) for element in elements])) if elements else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _from_ast(node: Any) -> ToolCall:
    import ast

    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keywords")
    function = node.func
    names = []
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("not a plain name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("not a plain keyword")
        value = ast.literal_eval(_with_constants(keyword.value))
        arguments[keyword.arg] = json.loads(json.dumps(value, allow_nan=False))
    return ToolCall(".".join([function.id, *reversed(names)]), arguments)


def _with_constants(value: Any) -> Any:
    """true, false and null mean what they mean in JSON, which models mix up with Python."""
    import ast

    class Constants(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node

    return Constants().visit(value)


# builtin -------------------------------------------------------------------------------------------------------------
def write_builtin(call: ToolCall) -> str:
    """A built-in tool's call; the code interpreter's is the code itself. Raises UsageError for other arguments."""
    wanted = "code" if call.name == CODE_INTERPRETER else "query"
    value = call.arguments.get(wanted)
    if set(call.arguments) != {wanted} or not isinstance(value, str):
        raise UsageError(f"the built-in tool {call.name} takes one argument, {wanted}, a string")
    return value if call.name == CODE_INTERPRETER else f"{call.name}.call(query={_dumps(value)})"


def read_builtin(text: str) -> Found | None:
    calls = []
    at = _end(_BETWEEN, text, 0)
    while match := _BUILTIN.match(text, at):
        try:
            value = json.loads(f'"{match[3]}"')
        except ValueError:  # a backslash that means itself
            value = match[3]
        calls.append(ToolCall(match[1], {match[2]: value}))
        at = _end(_BETWEEN, text, match.end())
    return Found(tuple(calls)) if calls and at == len(text) else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _decoder() -> json.JSONDecoder:
    """Of JSON proper, without NaN and Infinity."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.JSONDecoder(parse_constant=refuse)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
