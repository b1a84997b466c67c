"""Prompts as OpenAI's completions and embeddings take them: text, token ids, or a list of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herder.serve import values
from herder.serve.fields import FieldError

MAX_TOKENS = 1 << 22  # of one prompt of token ids; a context is smaller


def prompts(body: Mapping[str, Any], name: str, most: int) -> tuple[str | tuple[int, ...], ...]:
    """Raises FieldError when there is none, one is empty, or one is neither text nor token ids."""
    if name not in body:
        raise FieldError(f"{name} is missing: give text or token ids", name)
    value = body[name]
    if isinstance(value, str):
        return (values.text(value, name),)
    many = values.listed(value, name, None, 1)
    if isinstance(many[0], int):
        return (_ids(many, name),)
    values.listed(many, name, most)
    return tuple(
        values.text(one, f"{name}[{i}]") if isinstance(one, str) else _ids(one, f"{name}[{i}]")
        for i, one in enumerate(many)
    )


def _ids(value: Any, where: str) -> tuple[int, ...]:
    ids = values.listed(value, where, MAX_TOKENS, 1)
    for i, one in enumerate(ids):
        if type(one) is not int or not 0 <= one < 2**31:
            raise FieldError(f"{where}[{i}] is {values.kind(one)}: expected a token id", f"{where}[{i}]")
    return tuple(ids)
