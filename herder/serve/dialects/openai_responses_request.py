"""A request to OpenAI's responses: JSON -> what is asked, and with the conversation so far -> ChatRequest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herder.chat.message import Tool, read_tool
from herder.core.errors import UsageError
from herder.serve import values
from herder.serve.dialect import Call
from herder.serve.dialects import openai_options as options
from herder.serve.dialects.openai_chat_request import at_field
from herder.serve.dialects.openai_constraints import structured_outputs
from herder.serve.dialects.openai_responses_fields import COUNT, MAX_TOOLS, TABLE, TOOL_KINDS
from herder.serve.dialects.openai_responses_items import Item, messages, read_items
from herder.serve.fields import FieldError, checked
from herder.serve.wire import ChatRequest, Constraint, Named

LOGPROBS = "message.output_text.logprobs"
INCLUDES = (LOGPROBS, "message.input_image.image_url")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without the conversation that it continues. items: of its input; references among them name items that
    are stored. common: the arguments of ChatRequest besides messages. echo: what the response says of its request.
    summary: reasoning goes where OpenAI has summaries."""

    items: tuple[Item, ...]
    instructions: str | None
    previous: str | None
    store: bool
    summary: bool
    logprobs: bool
    common: Mapping[str, Any]
    echo: Mapping[str, Any]

    def request(self, history: Sequence[Item], items: Sequence[Item]) -> ChatRequest:
        """history: the items of the conversation so far. items: of the input, with references resolved. Raises
        FieldError."""
        before = [(f"the conversation's item {i}", item) for i, item in enumerate(history)]
        new = [(f"input[{i}]", item) for i, item in enumerate(items)]
        said = messages(self.instructions, [*before, *new])
        return ChatRequest(**self.common, messages=said, spare_reasoning=True)


def parse(call: Call) -> Asked:
    """Raises FieldError."""
    dropped = call.dropped
    body = options.given(checked(call.body, TABLE, dropped))
    found = options.options(body)
    if "max_output_tokens" in body:
        found["max_tokens"] = values.integer(body["max_output_tokens"], "max_output_tokens", 1)
    logprobs = _logprobs(body)
    if logprobs is not None:
        found["logprobs"] = logprobs
    _check_labels(body, dropped)
    tools = _tools(body, dropped)
    allowed, choice = _tool_choice(body, tools, dropped)
    constraint = _format(body, dropped)
    structured = structured_outputs(body, TABLE, dropped)
    if constraint is not None and structured is not None:
        raise FieldError("structured_outputs and text.format are both given: leave one out", "structured_outputs")
    parallel = values.boolean(body.get("parallel_tool_calls", True), "parallel_tool_calls")
    truncation = values.one_of(body.get("truncation", "disabled"), "truncation", ("auto", "disabled"))
    common = options.common(body, TABLE, dropped) | {
        "options": found,
        "constraint": constraint or structured,
        "truncate": truncation == "auto",
        "tools": allowed,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "format_options": values.schema(body.get("chat_template_kwargs", {}), "chat_template_kwargs"),
    }
    previous = body.get("previous_response_id")
    if previous is not None:
        values.text(previous, "previous_response_id", 256)
    elif "input" not in body:
        raise FieldError("input is missing: give a text or items", "input")
    instructions = body.get("instructions")
    if instructions is not None:
        values.text(instructions, "instructions")
    store = values.boolean(body.get("store", True), "store")
    return Asked(
        items=read_items(body.get("input", ()), dropped),
        instructions=instructions,
        previous=previous,
        store=store,
        summary=_summary(body, dropped),
        logprobs=logprobs is not None,
        common=common,
        echo={
            "background": False,
            "instructions": instructions,
            "max_output_tokens": found.get("max_tokens"),
            "max_tool_calls": body.get("max_tool_calls"),
            "metadata": dict(body.get("metadata", {})),
            "parallel_tool_calls": parallel,
            "previous_response_id": previous,
            "prompt_cache_key": body.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": body.get("reasoning", {}).get("summary")},
            "safety_identifier": body.get("safety_identifier"),
            "service_tier": "default",
            "store": store,
            "temperature": found.get("temperature"),
            "text": {"format": body.get("text", {}).get("format") or {"type": "text"}},
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": [_echoed(tool) for tool in tools],
            "top_logprobs": logprobs or 0,
            "top_p": found.get("top_p"),
            "truncation": truncation,
            "user": body.get("user"),
        },
    )


def parse_count(call: Call) -> Asked:
    """A request whose prompt is counted only. Raises FieldError."""
    return parse(Call(checked(call.body, COUNT, call.dropped), dropped=call.dropped))


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """How many alternatives, None when no log-probabilities are wanted."""
    include = values.listed(body.get("include", ()), "include", 64)
    for i, one in enumerate(include):
        values.one_of(one, f"include[{i}]", INCLUDES)
    top = values.integer(body.get("top_logprobs", 0), "top_logprobs", 0, 20)
    return top if top or LOGPROBS in include else None


def _check_labels(body: Mapping[str, Any], dropped: list[str] | None) -> None:
    """Fields that change no text but have a form."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if name in body:
            values.text(body[name], name, 1024)
    if "service_tier" in body:
        values.one_of(body["service_tier"], "service_tier", ("auto", "default"))
    if "max_tool_calls" in body:
        values.integer(body["max_tool_calls"], "max_tool_calls", 0)
    if "prompt_cache_options" in body:
        where = "prompt_cache_options"
        checked(values.mapping(body[where], where), TABLE, dropped, f"{where}.")
    if "metadata" in body:
        metadata = values.mapping(body["metadata"], "metadata")
        if len(metadata) > 16:
            raise FieldError(f"metadata has {len(metadata)} keys: at most 16 are taken", "metadata")
        for key, value in metadata.items():
            values.text(key, "a key of metadata", 64)
            values.text(value, f"metadata.{key}" if key.isidentifier() else "metadata", 512)


def _summary(body: Mapping[str, Any], dropped: list[str] | None) -> bool:
    if "reasoning" not in body:
        return False
    given = options.given(checked(values.mapping(body["reasoning"], "reasoning"), TABLE, dropped, "reasoning."))
    if "summary" not in given:
        return False
    values.one_of(given["summary"], "reasoning.summary", ("auto", "detailed"))
    return True


# Tools and the answer's form -----------------------------------------------------------------------------------------
def _tools(body: Mapping[str, Any], dropped: list[str] | None) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for i, value in enumerate(values.listed(body.get("tools", ()), "tools", MAX_TOOLS)):
        where = f"tools[{i}]"
        value = values.mapping(value, where)
        if value.get("type") != "function":
            kind = values.kind(value.get("type"))
            raise FieldError(f"{where}.type is {kind}: expected function; {TOOL_KINDS}", f"{where}.type")
        given = options.given(checked(value, TABLE, dropped, f"{where}."))
        values.boolean(given.get("strict", False), f"{where}.strict")
        try:
            tool = read_tool({"function": {name: one for name, one in given.items() if name != "type"}}, where)
        except UsageError as error:
            # The reader knows the tools of chat completions, which stand in an object of their own.
            flat = UsageError(str(error).replace(f"{where}.function", where))
            raise at_field(flat, where) from None
        if tools.setdefault(tool.name, tool) is not tool:
            raise FieldError(f"{where} has the name of another tool, {values.kind(tool.name)}", f"{where}.name")
    return tuple(tools.values())


def _echoed(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.extra.get("strict", False),
    }


def _tool_choice(
    body: Mapping[str, Any], tools: tuple[Tool, ...], dropped: list[str] | None
) -> tuple[tuple[Tool, ...], Any]:
    """The tools that may be called, and which must be."""
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, str):
        values.one_of(choice, "tool_choice", ("none", "auto", "required"))
        if choice == "required" and not tools:
            raise FieldError("tool_choice is required, but there are no tools", "tool_choice")
        return tools, choice
    choice = values.mapping(choice, "tool_choice")
    if choice.get("type") not in ("function", "allowed_tools"):
        kind = values.kind(choice.get("type"))
        message = f"tool_choice.type is {kind}: expected function or allowed_tools; {TOOL_KINDS}"
        raise FieldError(message, "tool_choice.type")
    choice = options.given(checked(choice, TABLE, dropped, "tool_choice."))
    own = ("type", "name") if choice["type"] == "function" else ("type", "mode", "tools")
    if extra := [name for name in choice if name not in own]:
        raise FieldError(f"tool_choice.{extra[0]} does not go with {choice['type']}", f"tool_choice.{extra[0]}")
    if choice["type"] == "function":
        return tools, Named(_function(choice, "tool_choice", tools))
    mode = values.one_of(choice.get("mode"), "tool_choice.mode", ("auto", "required"))
    names = set()
    for i, one in enumerate(values.listed(choice.get("tools"), "tool_choice.tools", MAX_TOOLS, 1)):
        where = f"tool_choice.tools[{i}]"
        one = values.mapping(one, where)
        values.one_of(one.get("type"), f"{where}.type", ("function",))
        if extra := [name for name in one if name not in ("type", "name")]:
            raise FieldError(f"{where} has {values.kind(extra[0])}, which is not known", where)
        names.add(_function(one, where, tools))
    return tuple(tool for tool in tools if tool.name in names), mode


def _function(value: Mapping[str, Any], where: str, tools: tuple[Tool, ...]) -> str:
    name = values.text(value.get("name"), f"{where}.name")
    if all(tool.name != name for tool in tools):
        raise FieldError(f"{where} names {values.kind(name)}, which is not among the tools", f"{where}.name")
    return name


def _format(body: Mapping[str, Any], dropped: list[str] | None) -> Constraint | None:
    if "text" not in body:
        return None
    text = options.given(checked(values.mapping(body["text"], "text"), TABLE, dropped, "text."))
    if "format" not in text:
        return None
    where = "text.format"
    wanted = options.given(checked(values.mapping(text["format"], where), TABLE, dropped, f"{where}."))
    kind = values.one_of(wanted.get("type"), f"{where}.type", ("text", "json_object", "json_schema"))
    if kind != "json_schema":
        if extra := [name for name in wanted if name != "type"]:
            raise FieldError(f"{where}.{extra[0]} does not go with {kind}", f"{where}.{extra[0]}")
        return None if kind == "text" else Constraint("json")
    if "name" in wanted:
        values.text(wanted["name"], f"{where}.name", 64)
    values.boolean(wanted.get("strict", False), f"{where}.strict")
    return Constraint("schema", values.schema(wanted.get("schema"), f"{where}.schema"))
