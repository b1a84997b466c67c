"""A request to OpenAI's chat completions: every field of it, and JSON -> ChatRequest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from herder.chat.message import Message, Tool, read_message, read_tool
from herder.core.errors import UsageError
from herder.serve import values
from herder.serve.dialect import Call
from herder.serve.dialects import openai_constraints as constraints
from herder.serve.dialects import openai_options as options
from herder.serve.fields import LOOSE, STRICT, Field, FieldError, Table, checked, refused, supported, translated
from herder.serve.wire import ChatRequest, Named

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 512

_LABEL = "a label that changes no answer; it is not kept"
URLS = "a data URL; a URL of a host from which the server's configuration lets it fetch images, by default none"
_NO_AUDIO = "no model here hears or speaks"

_MESSAGES: tuple[Field, ...] = (
    supported("messages", f"at most {MAX_MESSAGES}"),
    translated("messages[].role", "developer is read as system; function is refused: use tool"),
    supported("messages[].content", "text, or a list of parts"),
    translated("messages[].content[].type", "text, image_url; refusal is read as text"),
    supported("messages[].content[].text"),
    supported("messages[].content[].image_url"),
    supported("messages[].content[].image_url.url", URLS),
    supported(
        "messages[].content[].image_url.detail", "auto or high, which are the same; low and original are refused"
    ),
    translated("messages[].content[].refusal", "read as text"),
    refused("messages[].content[].input_audio", _NO_AUDIO),
    refused("messages[].content[].file", "send its text"),
    translated(
        "messages[].content[].prompt_cache_breakpoint", "not needed: every prefix is cached while there is room"
    ),
    translated("messages[].content[].prompt_cache_breakpoint.mode", "explicit is the only one"),
    refused("messages[].content[].prompt_cache_breakpoint.ttl", "prefixes are kept while there is room for them"),
    translated("messages[].name", "of a tool's result; a speaker's is refused: no format shows it to the model"),
    translated("messages[].refusal", "stands for the content of an assistant that has none"),
    refused("messages[].audio", _NO_AUDIO),
    refused("messages[].function_call", "use tool_calls"),
    supported("messages[].tool_call_id"),
    supported("messages[].tool_calls"),
    supported("messages[].tool_calls[].id"),
    supported("messages[].tool_calls[].type", "function"),
    supported("messages[].tool_calls[].function"),
    supported("messages[].tool_calls[].function.name"),
    supported("messages[].tool_calls[].function.arguments", "a JSON object, as text"),
    refused("messages[].tool_calls[].custom", "only functions are called"),
)

_FIELDS: tuple[Field, ...] = (
    supported("logprobs"),
    supported("top_logprobs", "0 to 20, with logprobs"),
    supported("max_completion_tokens", "default: until the model stops or the context is full"),
    translated("max_tokens", "as max_completion_tokens"),
    translated("metadata", "comes back with the answer; it is not kept"),
    supported("parallel_tool_calls"),
    *constraints.FIELDS,
    supported("tools", f"at most {MAX_TOOLS}"),
    supported("tools[].type", "function"),
    supported("tools[].function"),
    supported("tools[].function.name"),
    supported("tools[].function.description"),
    supported("tools[].function.parameters", f"a JSON Schema; {LOOSE}"),
    supported("tools[].function.strict", STRICT),
    refused("tools[].custom", "only functions are called"),
    supported("tool_choice", "none, auto, required, a function or allowed_tools"),
    supported("tool_choice.type"),
    supported("tool_choice.function"),
    supported("tool_choice.function.name"),
    translated("tool_choice.allowed_tools", "the model is shown the allowed tools only"),
    supported("tool_choice.allowed_tools.mode"),
    supported("tool_choice.allowed_tools.tools", 'functions: {"type": "function", "function": {"name": ...}}'),
    refused("tool_choice.custom", "only functions are called"),
    translated("prompt_cache_key", "not needed: one cache serves all requests"),
    supported("prompt_cache_options"),
    refused("prompt_cache_options.mode", "prefixes are cached by themselves", "implicit"),
    refused("prompt_cache_options.ttl", "prefixes are kept while there is room for them"),
    refused("prompt_cache_retention", "prefixes are kept in memory, while there is room for them", "in_memory"),
    translated("safety_identifier", _LABEL),
    translated("service_tier", "auto or default; the answer says default"),
    refused("store", "chat completions are not stored; /v1/responses stores", False),
    refused(
        "reasoning_effort", "these models have no levels; chat_template_kwargs passes what a format takes", "medium"
    ),
    refused("verbosity", "say in a message how long the answer shall be", "medium"),
    refused("prediction", "a model that is loaded with `speculate` guesses from the prompt: put the text there"),
    refused("modalities", "answers are text", ["text"], []),
    refused("audio", _NO_AUDIO),
    refused("moderation", "this endpoint judges nothing"),
    refused("web_search_options", "nothing is fetched while serving: give the model a tool of your own"),
    refused("functions", "use tools", []),
    refused("function_call", "use tool_choice", "none", "auto"),
)

_EXTENSIONS: tuple[Field, ...] = (
    supported("messages[].reasoning_content", "of an assistant, for formats that have a place for it"),
    refused("messages[].reasoning", "that is spelled reasoning_content here"),
    refused("messages[].annotations", "there are none", []),
    translated("messages[].tool_calls[].index", "the order of the list"),
    translated("chat_template_kwargs", "the options of the model's chat format (docs/chat.md)"),
    translated("include_reasoning", "false leaves reasoning out of the answer"),
    refused("chat_template", "the model's own format is used; its owner can load it with another"),
    refused("add_generation_prompt", "an answer is what is asked for", True),
    refused("continue_final_message", "use /v1/completions", False),
    refused("add_special_tokens", "the chat format writes them", False),
    refused("documents", "put them into a message"),
    refused("echo", "use /v1/completions", False),
    refused(
        "reasoning_format", "reasoning comes as reasoning_content; include_reasoning leaves it out", "auto", "deepseek"
    ),
    refused("thinking_token_budget", "use max_completion_tokens"),
    refused("mm_processor_kwargs", "images are cut as the model was trained"),
)

TABLE = Table(
    "POST /v1/chat/completions",
    "openai.types.chat.CompletionCreateParams",
    (*_MESSAGES, *options.FIELDS, *_FIELDS),
    (*_EXTENSIONS, *options.EXTENSIONS, *constraints.EXTENSIONS),
)


def parse(call: Call) -> ChatRequest:
    """Raises FieldError."""
    body = options.given(checked(call.body, TABLE, call.dropped))
    found = options.options(body)
    if (most := _most(body)) is not None:
        found["max_tokens"] = most
    if (logprobs := _logprobs(body)) is not None:
        found["logprobs"] = logprobs
    _check_labels(body, call.dropped)
    tools = _tools(body, call.dropped)
    tools, choice = _tool_choice(body, tools, call.dropped)
    return ChatRequest(
        **options.common(body, TABLE, call.dropped),
        options=found,
        constraint=constraints.constraint(body, TABLE, call.dropped),
        messages=_messages(body, call.dropped),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=values.boolean(body.get("parallel_tool_calls", True), "parallel_tool_calls"),
        reasoning=values.boolean(body.get("include_reasoning", True), "include_reasoning"),
        format_options=values.schema(body.get("chat_template_kwargs", {}), "chat_template_kwargs"),
    )


def _most(body: Mapping[str, Any]) -> int | None:
    found = {
        name: values.integer(body[name], name, 1) for name in ("max_completion_tokens", "max_tokens") if name in body
    }
    if len(set(found.values())) > 1:
        raise FieldError("max_tokens and max_completion_tokens differ: leave out max_tokens", "max_tokens")
    return next(iter(found.values()), None)


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted = values.boolean(body.get("logprobs", False), "logprobs")
    top = values.integer(body.get("top_logprobs", 0), "top_logprobs", 0, 20)
    if not wanted and top:
        raise FieldError("top_logprobs is given, but logprobs is not true: set it, or leave this out", "top_logprobs")
    return top if wanted else None


def _check_labels(body: Mapping[str, Any], dropped: list[str] | None) -> None:
    """Fields that change no text but have a form."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if name in body:
            values.text(body[name], name, 1024)
    if "service_tier" in body:
        values.one_of(body["service_tier"], "service_tier", ("auto", "default"))
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


# Messages ------------------------------------------------------------------------------------------------------------
def _messages(body: Mapping[str, Any], dropped: list[str] | None) -> tuple[Message, ...]:
    if "messages" not in body:
        raise FieldError("messages is missing: give at least one", "messages")
    found = values.listed(body["messages"], "messages", MAX_MESSAGES, 1)
    return tuple(_message(value, f"messages[{i}]", dropped) for i, value in enumerate(found))


def _message(value: Any, where: str, dropped: list[str] | None) -> Message:
    message = options.given(checked(values.mapping(value, where), TABLE, dropped, f"{where}."))
    role = message.get("role")
    if role == "developer":
        message["role"] = "system"
    elif role not in ("system", "user", "assistant", "tool"):
        hint = "use tool" if role == "function" else "expected system, developer, user, assistant or tool"
        raise FieldError(f"{where}.role is {values.kind(role)}: {hint}", f"{where}.role")
    if role == "tool" and "tool_call_id" not in message:
        raise FieldError(
            f"{where} lacks tool_call_id: it says which call this is the result of", f"{where}.tool_call_id"
        )
    if "name" in message and role != "tool":
        if dropped is None:
            note = "no chat format shows a speaker's name to the model, write it into the content"
            raise FieldError(f"{where}.name is not supported: {note}", f"{where}.name")
        dropped.append(f"{where}.name")
        del message["name"]
    refusal = message.pop("refusal", None)
    if refusal is not None and message.get("content") is None:
        message["content"] = refusal
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _parts(content, f"{where}.content", dropped)
    if "tool_calls" in message:
        calls = values.listed(message["tool_calls"], f"{where}.tool_calls", MAX_TOOLS)
        message["tool_calls"] = [_call(one, f"{where}.tool_calls[{i}]", dropped) for i, one in enumerate(calls)]
    try:
        return read_message(message, where, files=False, links=True)
    except UsageError as error:
        raise at_field(error, where) from None


def _parts(content: list[Any], where: str, dropped: list[str] | None) -> str | list[dict[str, Any]]:
    """Parts that are all text are one text: what any chat format takes."""
    parts = []
    for i, value in enumerate(values.listed(content, where, MAX_PARTS)):
        inside = f"{where}[{i}]"
        part = options.given(checked(values.mapping(value, inside), TABLE, dropped, f"{inside}."))
        kind = values.one_of(part.get("type"), f"{inside}.type", ("text", "image_url", "refusal"))
        if "prompt_cache_breakpoint" in part:
            mark = f"{inside}.prompt_cache_breakpoint"
            mode = checked(values.mapping(part.pop("prompt_cache_breakpoint"), mark), TABLE, dropped, f"{mark}.")
            values.one_of(mode.get("mode"), f"{mark}.mode", ("explicit",))
        if kind == "refusal":
            part = {"type": "text", "text": part.get("refusal")}
        if kind == "image_url" and isinstance(part.get("image_url"), Mapping):
            part["image_url"] = checked(part["image_url"], TABLE, dropped, f"{inside}.image_url.")
        elif kind != "image_url":
            values.text(part.get("text"), f"{inside}.text")
        parts.append(part)
    if all(part["type"] == "text" and len(part) == 2 for part in parts):
        return "".join([part["text"] for part in parts])
    return parts


def _call(value: Any, where: str, dropped: list[str] | None) -> dict[str, Any]:
    call = options.given(checked(values.mapping(value, where), TABLE, dropped, f"{where}."))
    call.pop("index", None)
    if "function" in call:
        function = values.mapping(call["function"], f"{where}.function")
        call["function"] = checked(function, TABLE, dropped, f"{where}.function.")
    return call


_WHERE = re.compile(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+)*")


def at_field(error: UsageError, where: str) -> FieldError:
    """The error of a reader that begins with what is wrong, as one that names the field."""
    found = _WHERE.match(str(error))
    return FieldError(str(error), found[0] if found and found[0].startswith(where) else where)


# Tools -----------------------------------------------------------------------------------------
def _tools(body: Mapping[str, Any], dropped: list[str] | None) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for i, value in enumerate(values.listed(body.get("tools", ()), "tools", MAX_TOOLS)):
        where = f"tools[{i}]"
        given = options.given(checked(values.mapping(value, where), TABLE, dropped, f"{where}."))
        values.one_of(given.get("type"), f"{where}.type", ("function",))
        if "function" in given:
            function = values.mapping(given["function"], f"{where}.function")
            given["function"] = options.given(checked(function, TABLE, dropped, f"{where}.function."))
            values.boolean(given["function"].get("strict", False), f"{where}.function.strict")
        try:
            tool = read_tool(given, where)
        except UsageError as error:
            raise at_field(error, where) from None
        if tools.setdefault(tool.name, tool) is not tool:
            raise FieldError(f"{where} has the name of another tool, {tool.name!r}", f"{where}.function.name")
    return tuple(tools.values())


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
    choice = options.given(checked(values.mapping(choice, "tool_choice"), TABLE, dropped, "tool_choice."))
    kind = values.one_of(choice.get("type"), "tool_choice.type", ("function", "allowed_tools"))
    if kind == "function":
        return tools, Named(_function(choice, "tool_choice", tools, dropped))
    where = "tool_choice.allowed_tools"
    allowed = checked(values.mapping(choice.get("allowed_tools"), where), TABLE, dropped, f"{where}.")
    mode = values.one_of(allowed.get("mode"), f"{where}.mode", ("auto", "required"))
    names = set()
    for i, one in enumerate(values.listed(allowed.get("tools"), f"{where}.tools", MAX_TOOLS, 1)):
        inside = f"{where}.tools[{i}]"
        values.one_of(values.mapping(one, inside).get("type"), f"{inside}.type", ("function",))
        names.add(_function(one, inside, tools, dropped))
    return tuple(tool for tool in tools if tool.name in names), mode


def _function(value: Mapping[str, Any], where: str, tools: tuple[Tool, ...], dropped: list[str] | None) -> str:
    """The name in {"type": "function", "function": {"name": ...}}, which must be that of a tool."""
    if extra := [key for key in value if key not in ("type", "function")]:
        raise FieldError(f"{where} has {values.kind(extra[0])}, which is not known", where)
    inner = values.mapping(value.get("function"), f"{where}.function")
    name = values.text(checked(inner, TABLE, dropped, "tool_choice.function.").get("name"), f"{where}.function.name")
    if all(tool.name != name for tool in tools):
        raise FieldError(f"{where} names {values.kind(name)}, which is not among the tools", f"{where}.function.name")
    return name
