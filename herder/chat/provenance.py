"""Which control tokens in a rendered prompt come from the template, and which only from somebody's text.

Before a template is compiled, every control token spelled out in it (in its text or in a string constant) is replaced
by one lone surrogate. Surrogates are characters that no valid text holds, so no message, tool or option can bring one
in; and whatever the template does with strings (joining, trimming, slicing, JSON) a single character stays whole. In
the output, a surrogate is a control token, and a control token's spelling is only text.

Templates that put a token together around a role, as '<|' + message.role + '|>' does, are followed too: where the
vocabulary has such tokens, the pieces before and after the role become surrogates, and count when they enclose a role.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from jinja2 import nodes

from herder.chat.format import Control, Segment, Text
from herder.chat.message import ROLES
from herder.chat.sandbox import GENERATION
from herder.core.errors import TemplateError

_FIRST, _LAST = 0xD810, 0xDFFF  # GENERATION lies below

_ROLE = "|".join(ROLES)
_AROUND_ROLE = re.compile(rf"(.*\W)(?:{_ROLE})(\W.*)")

Span = tuple[int, int]


class Marks:
    """The surrogates of one template. control: spelling -> id of the control tokens of its vocabulary."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self._spelling: dict[str, str] = {mark: "" for mark in GENERATION}  # surrogate -> what it stands for
        self._mark: dict[tuple[str, str], str] = {}  # (token | before | after, spelling) -> surrogate
        longest_first = sorted(filter(None, control), key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        around = [found.groups() for token in control if (found := _AROUND_ROLE.fullmatch(token))]
        self._before = sorted({before for before, _ in around}, key=len, reverse=True)
        self._after = sorted({after for _, after in around}, key=len, reverse=True)

    def mark(self, text: str) -> str:
        """A template's own text with its control tokens as surrogates."""
        marked = self._tokens.sub(lambda match: self._surrogate("token", match[0]), text)
        for before in self._before:
            if marked.endswith(before):
                marked = marked[: -len(before)] + self._surrogate("before", before)
                break
        for after in self._after:
            if marked.startswith(after):
                marked = self._surrogate("after", after) + marked[len(after) :]
                break
        return marked

    def mark_template(self, tree: nodes.Template) -> None:
        """Marks the text and the string constants of a parsed template, in place."""
        for data in tree.find_all(nodes.TemplateData):
            if data.data not in GENERATION:
                data.data = self.mark(data.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self.mark(constant.value)

    def plain(self, marked: str) -> str:
        """Marked text as one reads it."""
        return "".join([self._spelling.get(char, char) for char in marked])

    def split(self, marked: str, learn: list[Span]) -> Iterator[Segment]:
        """The segments of a rendered prompt. learn: the spans of `marked` that the assistant wrote, besides those that
        the template itself marks as generated."""
        text: list[str] = []
        spans: list[Span] = []
        length = 0
        generating = False
        for at, end, piece, token in self._pieces(marked):
            if piece in GENERATION:
                generating = piece == GENERATION[0]
                continue
            if token is None:
                plain = self.plain(piece)
                within = [(max(a, at) - at, min(b, end) - at) for a, b in learn if a < end and at < b]
                if generating or (within and plain != piece):
                    within = [(0, len(plain))]
                spans += [(length + a, length + b) for a, b in within]
                text.append(plain)
                length += len(plain)
                continue
            if text:
                yield Text("".join(text), tuple(spans))
                text, spans, length = [], [], 0
            yield Control(self._control[token], token, generating or any(a <= at < b for a, b in learn))
        if text:
            yield Text("".join(text), tuple(spans))

    def _pieces(self, marked: str) -> Iterator[tuple[int, int, str, str | None]]:
        """(start, end, piece, token) of plain runs and of marks; token: the control token that a piece is."""
        before = "".join(mark for (kind, _), mark in self._mark.items() if kind == "before")
        after = "".join(mark for (kind, _), mark in self._mark.items() if kind == "after")
        around = f"[{before}](?:{_ROLE})[{after}]|" if before and after else ""
        at = 0
        for match in re.finditer(f"{around}[\ud800-\udfff]", marked):
            if match.start() > at:
                yield at, match.start(), marked[at : match.start()], None
            at = match.end()
            token = self.plain(match[0])
            yield match.start(), at, match[0], token if token in self._control else None
        if at < len(marked):
            yield at, len(marked), marked[at:], None

    def _surrogate(self, kind: str, spelling: str) -> str:
        mark = self._mark.get((kind, spelling))
        if mark is None:
            if _FIRST + len(self._mark) > _LAST:
                raise TemplateError("the chat template spells out more than two thousand different control tokens")
            mark = self._mark[kind, spelling] = chr(_FIRST + len(self._mark))
            self._spelling[mark] = spelling
        return mark
