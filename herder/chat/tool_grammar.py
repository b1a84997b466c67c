"""What an answer must be where tools may be called: a grammar for each notation of calls and each choice of tools.

auto: a text, or calls; once a call has begun, its name is a tool's and its arguments follow that tool's schema.
required: calls alone. none: no token that opens calls. The grammars are in llguidance's kind of Lark, with the tools'
schemas as parts; text/grammar.py compiles them. No text may look like a call that the format would read as one but that
follows no schema: where an answer begins like a call, it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from herder.chat.format import Calling, CallStyle, ChatFormat, Thinking
from herder.chat.keywords import OF_KEYWORDS
from herder.chat.message import Tool
from herder.core.errors import UsageError
from herder.core.request import Constraint
from herder.text.grammar import Composite, literal

Choice: TypeAlias = Literal["auto", "required", "none"]
Form: TypeAlias = Constraint | Composite

_TEXT = r"""
GAP: /[ \t\n\r]*/
ANY: /(?s:.*)/
PAIR: ("\"type\"" | "\"id\"") GAP ":" GAP /"([^"\\]|\\.)*"/ GAP "," GAP
LIKE_JSON: GAP ("[" GAP)? "{" GAP PAIR* ("\"name\"" GAP ":" GAP QUOTED | /"(parameters|arguments|function)"/) ANY
LIKE_PYTHON: GAP "[" GAP NAME "(" ANY
LIKE_BUILTIN: /[\s;,]*/ NAME ".call(" ANY
LIKE_TAG: ANY "<function=" NAME ">" ANY
"""
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def answer_form(
    chat_format: ChatFormat | None,
    tools: Sequence[Tool],
    *,
    choice: Choice | None,
    parallel: bool = True,
    content: Constraint | None = None,
    options: Mapping[str, Any] | None = None,
) -> Form | None:
    """What an answer must be; None: anything. Reasoning is free, where the format has some, and comes first.

    choice: None holds nothing but the content to a form. A tool that must be called is given alone, as required.
    parallel: False: at most one call. content: what the answer must be where it is no call. options: what the
    conversation was rendered with. A tool whose `strict` is false may get any object as its arguments.
    Raises UsageError where the format has no calls that could be required, or its notation cannot write a tool's name.
    """
    calling: object = chat_format
    style = calling.call_style(**(options or {})) if isinstance(calling, Calling) else None
    if choice == "none" or choice is None or (choice == "auto" and (style is None or not tools)):
        if content is None and choice == "none" and style is not None and style.opening is not None:
            return Composite("start: begin ANY\nANY: /(?s:.*)/", {})
        return _after_thought(chat_format, content)
    if not tools:
        raise UsageError("a tool must be called, but none is given: give tools, or leave tool_choice out")
    if style is None:
        name = "this model" if chat_format is None else f"the chat format {chat_format.name}"
        raise UsageError(
            f"a tool must be called, but {name} has no notation for calls: leave tool_choice out, or give the answer a "
            "schema"
        )
    return _Builder(style, tools, choice == "auto", parallel, content).form()


def chosen(tools: Sequence[Tool], choice: str | None) -> tuple[Sequence[Tool], Choice | None]:
    """The tools that may be called, and how: a tool's name stands for that tool alone, which is required."""
    match choice:
        case None | "auto" | "required" | "none":
            return tools, choice
        case _:
            named = [tool for tool in tools if tool.name == choice]
            if not named:
                raise UsageError(f"tool_choice is {choice!r}: expected auto, required, none or the name of a tool")
            return named, "required"


def _after_thought(chat_format: object, content: Constraint | None) -> Form | None:
    """The content, after the thoughts of a model that thinks first."""
    if content is None or not isinstance(chat_format, Thinking):
        return content
    thoughts = chat_format.thoughts
    lines = ["GAP: /[ \\t\\n]{1,4}/"]
    if thoughts.close_id is not None:
        lines += [f"thought: THOUGHT <[{thoughts.close_id}]>", "THOUGHT: /(?s:.*)/"]
    else:
        lines += ["thought[lazy]: THOUGHT", f"THOUGHT: /(?s:.*)/ {literal(thoughts.close)}"]
    opening = literal(thoughts.open) if thoughts.open_id is None else f"<[{thoughts.open_id}]>"
    if thoughts.prefilled:
        lines.append("start: begin thought GAP? @content")
    else:
        lines.append(f"start: begin {opening} thought GAP? @content | begin @content")
    return Composite("\n".join(lines), {"content": content})


class _Builder:
    """One grammar, under construction: its lines and its parts."""

    def __init__(
        self, style: CallStyle, tools: Sequence[Tool], free: bool, parallel: bool, content: Constraint | None
    ) -> None:
        self.style = style
        self.tools = tools
        self.free = free  # a text will do as well
        self.parallel = parallel
        self.content = content
        self.parts: dict[str, Constraint] = {}
        self.lines: list[str] = []

    def form(self) -> Composite:
        notations: dict[str, Callable[[], None]] = {
            "json": self._json,
            "python": self._python,
            "list": self._list,
            "tag": self._tag,
            "hermes": self._hermes,
        }
        notations[self.style.notation]()
        if self.free:
            if self.content is not None:
                self.parts["content"] = self.content
                self.lines.append("text: begin @content")
            else:
                self.lines.append("text: begin TEXT")
            names = [tool.name for tool in self.tools]
            self.lines += [
                _TEXT,
                f"NAME: {' | '.join(map(literal, names))}",
                f"QUOTED: {' | '.join([literal(_quoted(name)) for name in names])}",
                "TEXT: ANY & ~LIKE_JSON & ~LIKE_PYTHON & ~LIKE_BUILTIN & ~LIKE_TAG",
            ]
        return Composite("\n".join(self.lines), self.parts)

    # Notations whose calls are the whole answer, or stand behind a control token ----------------------------------
    def _json(self) -> None:
        self._alternatives(key="parameters", before='("\\"type\\": \\"function\\", ")? ')
        self._whole('call ("; " call)*' if self.parallel else "call")

    def _python(self) -> None:
        # The bracket and the first name are one terminal: a bracket alone might also begin a text.
        for i, tool in enumerate(self.tools):
            name = _identifier(tool.name, tool.name)
            keywords = self._keywords(i)
            self.lines.append(f'first{i}: {literal(f"[{name}(")} {keywords} ")"')
            self.lines.append(f'call{i}: {literal(f"{name}(")} {keywords} ")"')
        self.lines += [f"{rule}: {self._any(rule)}" for rule in ("first", "call")]
        self._whole('first (", " call)* "]"' if self.parallel else 'first "]"')

    def _list(self) -> None:
        identity = '| ", \\"id\\": \\"" /[A-Za-z0-9]{9}/ "\\"}"'
        self._alternatives(key="arguments", end=f'("}}" {identity})')
        more = '("," " "? call)*' if self.parallel else ""
        self._whole(f'" "? "[" call {more} "]"')

    def _whole(self, calls: str) -> None:
        """The answer is calls and nothing else, but for a text before a control token that is always there."""
        style = self.style
        self.lines.append(f"calls: {calls}")
        ways = []
        if style.opening is not None:
            close = f"<[{style.closing}]>?" if style.closing is not None else ""
            ways.append(f"<[{style.opening}]> calls {close}")
            if style.builtin:
                ways.append(f"<[{style.opening}]> CODE {close}")
                self.lines.append("CODE: /(?s:.+)/")
        # Where a form of the content may begin as a call does, only the token tells them apart.
        alike = style.notation == "json" and self.free and self.content is not None
        if alike and style.opening is None:
            raise UsageError(
                "this model writes its calls as JSON, so its answer can be held to calls or to a form, but not to "
                "either: set tool_choice to required or none, or leave the form out"
            )
        if (style.opening is None or style.optional) and not alike:
            ways.append("begin calls")
        elif self.free and self.content is None:
            ways.append(f"text <[{style.opening}]> calls")
        self._start(ways)

    # Notations whose calls stand among text ------------------------------------------------------------------------
    def _tag(self) -> None:
        calls = []
        for i, tool in enumerate(self.tools):
            if not tool.name or any(sign in "<>{}" or sign.isspace() for sign in tool.name):
                raise UsageError(f"the tool {tool.name!r} has a name that <function=NAME> cannot hold: rename it")
            calls.append(f"{literal(tool.name + '>')} @{self._arguments(i)}")
        self.lines.append(f'call: mark ({" | ".join(calls)}) "</function>"')
        self._marked("<function=")

    def _hermes(self) -> None:
        style = self.style
        self._alternatives(key="arguments", rule="one")
        if style.opening is None:
            self.lines.append('call: mark "\\n"? one "\\n"? "</tool_call>"')
            self._marked("<tool_call>")
            return
        close = '"</tool_call>"' if style.closing is None else f"<[{style.closing}]>"
        self.lines.append(f'call: <[{style.opening}]> "\\n"? one "\\n"? {close}')
        calls = 'call ("\\n"? call)*' if self.parallel else "call"
        ways = [calls]
        if self.free and self.content is None:
            ways.append("text (call ANY)+" if self.parallel else "text call")
        self._start(ways)

    def _marked(self, mark: str) -> None:
        """Calls that begin with a text, before which any other may stand."""
        if self.free and self.content is None:
            self.lines += ["mark[lazy]: UP_TO", f"UP_TO: /(?s:.*)/ {literal(mark)}"]
            self._start(["call+ ANY" if self.parallel else 'call "\\n"?'], begun=True)
        else:
            self.lines.append(f"mark: {literal(mark)}")
            self._start(["begin call (/\\s?/ call)*" if self.parallel else "begin call"])

    # Parts ---------------------------------------------------------------------------------------------------------
    def _start(self, ways: list[str], begun: bool = False) -> None:
        ways = [f"begin ({way})" for way in ways] if begun else ways
        self.lines.append(f"start: {' | '.join([*ways, 'text'] if self.free else ways)}")

    def _alternatives(self, *, key: str, before: str = "", end: str = '"}"', rule: str = "call") -> None:
        """call: one of {"name": NAME, key: arguments}."""
        for i, tool in enumerate(self.tools):
            head = literal(f'"name": {_quoted(tool.name)}, "{key}": ')
            self.lines += [f'HEAD{i}: "{{" {before}{head}', f"{rule}{i}: HEAD{i} @{self._arguments(i)} {end}"]
        self.lines.append(f"{rule}: {self._any(rule)}")

    def _any(self, rule: str) -> str:
        return " | ".join([f"{rule}{i}" for i in range(len(self.tools))])

    def _arguments(self, i: int) -> str:
        self.parts[f"args{i}"] = Constraint("schema", _schema(self.tools[i]))
        return f"args{i}"

    def _keywords(self, i: int) -> str:
        """name=value, ... in the order of the schema; a rule, since what is optional may be left out."""
        tool = self.tools[i]
        schema = _schema(tool)
        if unknown := sorted(schema.keys() - OF_KEYWORDS):
            raise UsageError(
                f"the tool {tool.name} has parameters with {unknown[0]}, which no list of keywords can be held to: use "
                "properties and required alone, or another tool_notation"
            )
        properties, required = schema.get("properties", {}), schema.get("required", ())
        if missing := [name for name in required if name not in properties]:
            raise UsageError(f"the tool {tool.name} requires {missing[0]!r}, which is none of its properties")
        shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        rules = list(self._keyword_rules(i, tool.name, properties, set(required), shared))
        self.lines += rules
        return f"none{i}_0"

    def _keyword_rules(
        self, i: int, tool: str, properties: Mapping[str, Any], required: set[str], shared: Mapping[str, Any]
    ) -> Iterator[str]:
        """none{i}_{j}: the keywords from j on, where none is written yet; rest{i}_{j}: where some are."""
        for j, (name, schema) in enumerate(properties.items()):
            value = f"value{i}_{j}"
            yield f"{value}: {self._value(f'keyword{i}_{j}', schema, shared)}"
            pair = f"{literal(_identifier(name, tool) + '=')} {value} rest{i}_{j + 1}"
            if name in required:
                yield f"none{i}_{j}: {pair}"
                yield f'rest{i}_{j}: ", " {pair}'
            else:
                yield f"none{i}_{j}: {pair} | none{i}_{j + 1}"
                yield f'rest{i}_{j}: ", " {pair} | rest{i}_{j + 1}'
        yield f'none{i}_{len(properties)}: ""'
        yield f'rest{i}_{len(properties)}: ""'

    def _value(self, part: str, schema: Any, shared: Mapping[str, Any]) -> str:
        """JSON, which calls.read_python reads in Python's place; True and False where nothing else can stand."""
        if isinstance(schema, Mapping) and schema.get("type") == "boolean" and not {"enum", "const"} & schema.keys():
            return '"True" | "False"'
        self.parts[part] = Constraint("schema", {**shared, **schema} if isinstance(schema, Mapping) else shared)
        return f"@{part}"


def _schema(tool: Tool) -> dict[str, Any]:
    """Of a tool's arguments, which are an object. A tool without parameters takes none (as OpenAI's API has it)."""
    if tool.extra.get("strict") is False:
        return {"type": "object"}
    if not tool.parameters:
        return _NO_PARAMETERS
    return {"type": "object", **tool.parameters}


def _quoted(name: str) -> str:
    return literal(name)


def _identifier(name: str, tool: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is no Python identifier: call {tool!r} in another notation than python")
    return name
