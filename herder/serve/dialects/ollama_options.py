"""What Ollama's `options` and `keep_alive` say: sampling, the context that is needed, how long a model stays loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herder.core.errors import UsageError
from herder.core.request import Sampling
from herder.serve import values
from herder.serve.dialects.ollama_fields import MAX_STOPS
from herder.serve.fields import FieldError

LONGEST = 10 * 365 * 86400.0  # seconds; whoever says more means for ever
_RENAMED = {"repeat_penalty": "repetition_penalty"}
_NUMBERS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")

# Go's notation of durations, which Ollama takes: "1h30m", "-1s", "0".
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Settings:
    """options: as herder.llm.Options names them. context: the tokens that num_ctx asks for."""

    options: Mapping[str, Any]
    context: int | None


def given(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a client has said: null says nothing."""
    return {name: value for name, value in body.items() if value is not None}


def settings(body: Mapping[str, Any]) -> Settings:
    """body: the checked `options`. Raises FieldError."""
    found: dict[str, Any] = {}
    for name in _NUMBERS:
        if name in body:
            found[_RENAMED.get(name, name)] = values.number(body[name], f"options.{name}")
    if "top_k" in body:
        found["top_k"] = max(0, values.integer(body["top_k"], "options.top_k", -1, 2**31 - 1))
    if "seed" in body:
        seed = values.integer(body["seed"], "options.seed", -(2**63), 2**64 - 1)
        if seed != -1:
            found["seed"] = seed % 2**64
    _check(found)
    if "num_predict" in body:
        most = values.integer(body["num_predict"], "options.num_predict", -2)
        if most == 0:
            raise FieldError("options.num_predict is 0: must be 1 or more, or -1 for no bound", "options.num_predict")
        if most > 0:
            found["max_tokens"] = most
    if "stop" in body:
        stops = values.listed(body["stop"], "options.stop", MAX_STOPS)
        found["stop"] = tuple(values.text(one, f"options.stop[{i}]", 1024) for i, one in enumerate(stops))
        if "" in found["stop"]:
            raise FieldError("options.stop has an empty string: every answer would end at once", "options.stop")
    context = body.get("num_ctx")
    return Settings(found, None if context is None else values.integer(context, "options.num_ctx", 1, 2**31 - 1))


def _check(found: Mapping[str, Any]) -> None:
    try:
        Sampling(**found)
    except UsageError as error:
        name, _, rest = str(error).partition(" ")
        name = next((ours for ours, theirs in _RENAMED.items() if theirs == name), name)
        raise FieldError(f"options.{name} {rest}", f"options.{name}") from None


def keep_alive(value: Any) -> float:
    """Seconds; negative for ever. Raises FieldError."""
    where = "keep_alive"
    seconds = _duration(value) if isinstance(value, str) else values.number(value, where)
    if seconds is None:
        raise FieldError(f'{where} is {values.kind(value)}: expected seconds, or text such as "5m" or "1h30m"', where)
    return -1.0 if seconds < 0 or seconds > LONGEST else seconds


def _duration(text: str) -> float | None:
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest or len(rest) > 64:
        return None
    total, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return sign * total
