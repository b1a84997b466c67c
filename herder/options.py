"""The options of the Python API, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from herder.core.errors import UsageError
from herder.core.request import Constraint, Sampling


class Options(TypedDict, total=False):
    """How to generate; each has a default. The sampling options are those of core.request.Sampling.

    max_tokens: None generates until the model stops or the context is full. stop: a string or several; the answer ends
    before the first one that appears. stop_tokens: ids that end it, besides the model's own. ignore_eos: go on where
    the model would stop. priority: lower runs first.

    What the answer must be, one of: json: any JSON object; schema: JSON that this JSON Schema admits; regex: a text
    that this regular expression matches whole, as Rust's regex crate reads it (Python's without look-around and
    references; its classes of characters differ in a few); choice: one of these strings; grammar: what this grammar
    admits, in llguidance's kind of Lark. The answer ends where it is whole; max_tokens and stop may still cut it off.

    Of a chat alone: format_options: what the model's format takes by name (date, builtin_tools, ...: docs/chat.md).
    tool_choice: "auto": a text or calls, whose arguments follow their tool's schema; "required": calls alone; a tool's
    name: calls of this one; "none": no calls; None (the default): whatever the model writes.
    parallel_tool_calls: False: one call at most, where tool_choice says anything.
    """

    max_tokens: int | None
    stop: str | Sequence[str]
    stop_tokens: Iterable[int]
    ignore_eos: bool
    priority: int
    json: bool
    schema: Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str
    format_options: Mapping[str, Any]
    tool_choice: str | None
    parallel_tool_calls: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    logprobs: int | None


_SAMPLING = frozenset(Sampling.__dataclass_fields__)
_CONSTRAINTS: dict[str, Literal["json", "schema", "regex", "choice", "lark"]] = {
    "json": "json",
    "schema": "schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}
_OF_CHATS = ("format_options", "tool_choice", "parallel_tool_calls")


def check_names(options: Options) -> None:
    """Raises UsageError for an option that there is not."""
    known = Options.__optional_keys__
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}: known are {', '.join(sorted(known))}")


def refuse_chat_options(options: Options) -> None:
    """Raises UsageError for an option that says something of a chat only."""
    values: Mapping[str, Any] = options
    for name in _OF_CHATS:
        if values.get(name) not in (None, {}):
            raise UsageError(f"{name} is an option of chats: a plain text has no format")


def sampling(options: Options, defaults: Sampling) -> Sampling:
    """Raises UsageError for a value that cannot be."""
    given: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING}
    if "logit_bias" in given:
        given["logit_bias"] = tuple(sorted(given["logit_bias"].items()))
    return replace(defaults, **given)


def stop_strings(options: Options) -> tuple[str, ...]:
    stop = options.get("stop")
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    return tuple(stop)


def constraint(options: Options) -> Constraint | None:
    """What the answer must be. Raises UsageError for more than one such option."""
    values: Mapping[str, Any] = options
    given = [name for name in _CONSTRAINTS if values.get(name) is not None and values[name] is not False]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} were given: an answer can be held to one of them only")
    if not given:
        return None
    name = given[0]
    if name == "json":
        if values[name] is not True:
            raise UsageError(f"json is {values[name]!r}: must be true or false (schema takes a JSON Schema)")
        return Constraint("json")
    return Constraint(_CONSTRAINTS[name], values[name])
