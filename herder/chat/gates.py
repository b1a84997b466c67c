"""What of a text is certain while the rest of it is still to come: text that is no call, thoughts, arguments of calls.

Each gate takes text in pieces of any size and lets through what nothing that follows can change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from herder.text.stream import overlap

MARKS = {"tag": "<function=", "hermes": "<tool_call>"}
_TAG = re.compile(r"<function=([^<>{}\s]*)(>\s*(\{)?)?")
_HERMES = re.compile(r"<tool_call>\s*(\{)?")
_WORD = re.compile(r"[\s;,]*(\w+)")
_PYTHON = re.compile(r"\s*\[\s*(?:([\w.]*)\s*(\()?)?")
_JSON = re.compile(r'\s*(?:\[\s*)*(?:(\{)\s*(?:"([^"\\]*)("?))?)?')
_KEYS = ("name", "parameters", "arguments", "type", "id", "function")


class TextGate:
    """Text in which calls may be written: lets through what stands before any that is possible.

    whole, marked: notations, as in format.Reading. tools: names that count; None: any.
    White space is kept back as long as a call might follow it, as it then may end the text.
    """

    def __init__(self, whole: frozenset[str], marked: Iterable[str], tools: frozenset[str] | None) -> None:
        callable_ = tools is None or bool(tools)
        self._whole = whole if callable_ else frozenset()
        self._marked = [(kind, MARKS[kind]) for kind in marked] if callable_ else []
        self._tools = tools
        self.held = ""
        self.mark = -1  # where in `held` a call seems to begin

    def push(self, text: str) -> str:
        self.held += text
        if self._whole:
            if self._may_be_calls():
                return ""
            self._whole = frozenset()
        return self._take(self._certain())

    @property
    def whole(self) -> bool:
        """Whether all of the text so far may be calls, and so is held back."""
        return bool(self._whole)

    def flush(self) -> str:
        """Everything, since what follows is certain to be no call of this text."""
        return self._take(len(self.held))

    def cut(self, at: int) -> str:
        """Takes what stands from `at` in `held` away."""
        rest, self.held = self.held[at:], self.held[:at]
        return rest

    def _take(self, end: int) -> str:
        taken, self.held = self.held[:end], self.held[end:]
        return taken

    def _certain(self) -> int:
        """How much of `held` is text for certain."""
        held = self.held
        self.mark = -1
        if not self._marked:
            return len(held)
        end = len(held)
        for kind, mark in list(self._marked):
            at = held.find(mark)
            while at >= 0:
                verdict = self._at_mark(kind, held, at)
                if verdict == "dead":  # one call that does not count makes text of all in its notation
                    self._marked.remove((kind, mark))
                    break
                if verdict == "call":
                    if at < end:
                        end = self.mark = at
                    break
                at = held.find(mark, at + 1)
            else:
                end = min(end, len(held) - overlap(held, mark))
        before = held[:end].rstrip()
        if self.mark >= 0:
            self.mark -= len(before)
        return len(before)

    def _at_mark(self, kind: str, held: str, at: int) -> Literal["call", "text", "dead"]:
        pattern = _TAG if kind == "tag" else _HERMES
        match = pattern.match(held, at)
        assert match is not None
        if match[match.re.groups] is None and match.end() < len(held):
            return "text"
        if kind == "tag" and match[2] is not None and self._tools is not None and match[1] not in self._tools:
            return "dead"
        return "call"

    def _may_be_calls(self) -> bool:
        held = self.held
        if not held.strip():
            return True
        return (
            ("json" in self._whole and _may_be_json(held))
            or ("python" in self._whole and self._may_be_python(held))
            or ("builtin" in self._whole and self._may_be_builtin(held))
        )

    def _may_be_python(self, held: str) -> bool:
        match = _PYTHON.match(held)
        if match is None:
            return False
        name, open_ = match[1] or "", match[2]
        if match.end() < len(held) and not open_:
            return False
        return self._named(name, whole=bool(open_))

    def _may_be_builtin(self, held: str) -> bool:
        match = _WORD.match(held)
        if match is None:
            return not held.strip(" \t\n\r\f\v;,")
        rest = held[match.end() :]
        if not rest:
            return self._named(match[1], whole=False)
        return (rest.startswith(".call(") or ".call(".startswith(rest)) and self._named(match[1], whole=True)

    def _named(self, name: str, whole: bool) -> bool:
        if self._tools is None:
            return True
        return name in self._tools if whole else any(tool.startswith(name) for tool in self._tools)


def _may_be_json(held: str) -> bool:
    match = _JSON.match(held)
    if match is None or (not match[1] and "[" not in match[0] and held.strip()):
        return False
    key, closed = match[2], match[3]
    if key is None:
        return match.end() == len(held)
    return key in _KEYS if closed else any(name.startswith(key) for name in _KEYS) and match.end() == len(held)


class ThoughtGate:
    """Thoughts up to `close`: lets through those that are certain, without the white space around them.

    open_: the text or the spelling of the token that begins them, if the model says it. prefill: they have begun before
    the answer. done: `close` has come, and `rest` is what came behind it.
    """

    def __init__(self, open_: str, close: str, prefill: bool) -> None:
        self._open = open_
        self._close = close
        self._sure = prefill
        self._begun = False  # past the opening, if there was one
        self._first = True  # nothing let through yet
        self._held = ""
        self.done = False
        self.rest = ""

    def push(self, text: str) -> str:
        self._held += text
        if not self._begun:
            start = self._held.lstrip()
            if not start or (len(start) < len(self._open) and self._open.startswith(start)):
                return ""
            self._begun = True
            self._sure |= start.startswith(self._open)
            self._held = start.removeprefix(self._open)
        held = self._held.lstrip() if self._first else self._held
        thought, closed, self.rest = held.partition(self._close)
        self.done = bool(closed)
        if not closed:
            if not self._sure:  # without an opening, only the closing tells that these were thoughts
                return ""
            thought = held[: len(held) - overlap(held, self._close)]
        thought = thought.rstrip()
        self._held = held[len(thought) :]
        self._first &= not thought
        return thought


# Calls that a grammar holds to their form ----------------------------------------------------------------------------
class Head(NamedTuple):
    name: str


class Arguments(NamedTuple):
    text: str
    complete: bool


_NAMED = re.compile(
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"]*"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:parameters|arguments)"\s*:\s*'
    r"(?=\{)"
)
_HEADS = {
    "json": _NAMED,
    "list": _NAMED,
    "hermes": _NAMED,
    "tag": re.compile(r"<function=([^<>{}\s]+)>\s*(?=\{)"),
    "python": re.compile(r"([^\W\d][\w.]*)\("),
}
_TAILS = {
    "tag": re.compile(r"\s*</function>"),
    "hermes": re.compile(r"\s*\}\s*</tool_call>"),
}


class CallReader:
    """Reads calls of one notation from text that is in its form.

    push() gives heads and arguments in order: the arguments' JSON as the model writes it, piece by piece. The arguments
    of a python call, which are no JSON, come in one piece when the call is complete.
    In tag and hermes a call ends with its mark, and `rest` is what came behind; `done` says so.
    """

    def __init__(self, notation: str, convert: Callable[[str], str]) -> None:
        self._notation = notation
        self._convert = convert
        self._head = _HEADS[notation]
        self._tail = _TAILS.get(notation)
        self._held = ""
        self._state: Literal["head", "arguments", "tail"] = "head"
        self._scan = Scanner()
        self._name = ""
        self._call = ""  # of a python call, what has been scanned
        self.done = False
        self.rest = ""

    @property
    def open(self) -> bool:
        """Whether a call has begun whose arguments are not complete."""
        return self._state == "arguments"

    def push(self, text: str) -> list[Head | Arguments]:
        self._held += text
        found: list[Head | Arguments] = []
        while not self.done:
            if self._state == "head":
                match = self._head.search(self._held)
                if match is None:
                    break
                found.append(Head(self._read_name(match[1])))
                self._held = self._held[match.end() - (self._notation == "python") :]
                self._state, self._scan = "arguments", Scanner()
            elif self._state == "arguments":
                end = self._scan.push(self._held)
                if self._notation == "python":
                    if end is None:
                        self._call, self._held = self._call + self._held, ""
                        break
                    found.append(Arguments(self._convert(self._name + self._call + self._held[:end]), True))
                    self._call = ""
                else:
                    piece = self._held[: len(self._held) if end is None else end]
                    if piece or end is not None:
                        found.append(Arguments(piece, end is not None))
                    if end is None:
                        self._held = ""
                        break
                self._held = self._held[end:]
                self._state = "tail" if self._tail is not None else "head"
            else:
                assert self._tail is not None
                match = self._tail.match(self._held)
                if match is None:
                    break
                self.done, self.rest = True, self._held[match.end() :]
        return found

    def begins(self, text: str) -> bool:
        """Whether a call begins in `text`."""
        return self._head.search(text) is not None

    def _read_name(self, written: str) -> str:
        self._name = json.loads(written) if written.startswith('"') else written
        return self._name


class Scanner:
    """Finds where a JSON object, or a list of arguments in parentheses, ends."""

    _SIGNS = re.compile(r'["\\{}\[\]()]')

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def push(self, text: str) -> int | None:
        """The index behind the end, or None when it is still to come."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = self._SIGNS.search(text, at)
            if match is None:
                return None
            sign, at = match[0], match.end()
            if self._quoted:
                self._escaped = sign == "\\"
                self._quoted = sign != '"'
            elif sign == '"':
                self._quoted = True
            elif sign in "{[(":
                self._depth += 1
            elif sign != "\\":
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None
