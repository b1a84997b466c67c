"""The body of a request: read within bounds of size and time, and parsed within bounds of depth."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

from herder.core.sizes import bound_text
from herder.serve.config import Limits
from herder.serve.dialect import Problem
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

INLINE = 2**18  # bytes that are parsed on the event loop; longer bodies go to a thread


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object that a request carries; no body is an empty one. Raises Refusal: too large, too slow, no JSON."""
    data = await read_bytes(request, limits)
    if not data.strip():
        return {}
    if len(data) > INLINE:
        return await asyncio.to_thread(parse_object, data, limits.depth)
    return parse_object(data, limits.depth)


async def read_bytes(request: Request, limits: Limits) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limits.body:
        _too_large(limits.body)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body:
                    _too_large(limits.body)
                pieces.append(piece)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} s: send it faster, or in smaller requests"
        raise Refusal(Problem("invalid", message)) from None
    return b"".join(pieces)


def parse_object(data: bytes, depth: int) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_constant)
    except UnicodeDecodeError:
        raise _bad("the body is not UTF-8") from None
    except RecursionError:
        raise _bad(f"the body is nested more than {depth} deep") from None
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(value, dict):
        raise _bad("the body is JSON, but no object")
    level: list[Any] = [value]
    for _ in range(depth):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [child for values in inner for child in values if isinstance(child, dict | list)]
        if not level:
            return value
    raise _bad(f"the body is nested more than {depth} deep")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _bad(message: str) -> Refusal:
    return Refusal(Problem("invalid", message))


def _too_large(limit: int) -> NoReturn:
    raise Refusal(Problem("too_large", f"the body is larger than {bound_text(limit)}, which is the most that is read"))
