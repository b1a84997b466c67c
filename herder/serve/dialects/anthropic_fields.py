"""Every field of Anthropic's Messages API, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable

from herder.serve.fields import LOOSE, Field, Table, refused, supported, translated

MAX_MESSAGES = 4096
MAX_BLOCKS = 4096
MAX_TOOLS = 512
MAX_STOPS = 64

_CACHED = "not needed: every prefix is cached while there is room"
_TTL = "not needed: prefixes are kept while there is room, for 5 minutes or longer or shorter"
_LABEL = "a label that changes no answer; it is not kept"
_SERVER_TOOLS = "there are no server tools: give the model tools of your own, with an input_schema"
_SERVER_RESULT = "only results of the vendor's own tools have it: send text and images"
_NO_CITATIONS = "the model does not say where it found what it says: leave it out"
_SOURCES = "send text, or an image as base64"
_URL = "of an image, on a host from which the server's configuration lets it fetch images, by default none"


def _cache(name: str) -> tuple[Field, ...]:
    return (
        translated(name, _CACHED),
        supported(f"{name}.type", "ephemeral"),
        translated(f"{name}.ttl", _TTL),
    )


def _all_refused(path: str, note: str, names: str) -> Iterable[Field]:
    return (refused(path + name, note) for name in names.split())


_SYSTEM: tuple[Field, ...] = (
    supported("system", "text, or a list of text blocks, which are joined by line breaks"),
    supported("system[].type", "text"),
    supported("system[].text"),
    *_cache("system[].cache_control"),
    refused("system[].citations", _NO_CITATIONS, []),
)

_BLOCKS: tuple[Field, ...] = (
    supported("messages", f"at most {MAX_MESSAGES}; turns of one role that follow each other are one turn"),
    supported(
        "messages[].role", "user, assistant, system; the last is not the assistant's, whose text is not continued"
    ),
    supported("messages[].content", "text, or a list of blocks; text blocks are joined by line breaks"),
    supported(
        "messages[].content[].type", "text, image, document, tool_use, tool_result, thinking; any other is refused"
    ),
    *_cache("messages[].content[].cache_control"),
    supported("messages[].content[].text"),
    refused("messages[].content[].citations", _NO_CITATIONS, [], {"enabled": False}),
    supported("messages[].content[].source", "of an image: base64 or url; of a document: text"),
    supported("messages[].content[].source.type", "base64, url, text"),
    supported("messages[].content[].source.media_type"),
    supported("messages[].content[].source.data"),
    supported("messages[].content[].source.url", _URL),
    refused("messages[].content[].source.file_id", f"nothing is stored: {_SOURCES}"),
    refused("messages[].content[].source.content", "send the document's text"),
    refused("messages[].content[].transformations", "images are cut as the model was trained", {}),
    translated("messages[].content[].title", "of a document: stands before its text"),
    translated("messages[].content[].context", "of a document: stands before its text"),
    supported("messages[].content[].id", "of a tool_use"),
    supported("messages[].content[].name", "of a tool_use"),
    supported("messages[].content[].input", "of a tool_use"),
    refused("messages[].content[].caller", "the model itself calls", {"type": "direct"}),
    refused("messages[].content[].toolset_name", _SERVER_TOOLS),
    supported("messages[].content[].tool_use_id", "of a tool_result"),
    translated("messages[].content[].is_error", 'of a tool_result: its text begins with "Error: "'),
    supported("messages[].content[].content", "of a tool_result: text, or a list of text and image blocks"),
    supported("messages[].content[].content[].type", "text, image"),
    supported("messages[].content[].content[].text"),
    *_cache("messages[].content[].content[].cache_control"),
    refused("messages[].content[].content[].citations", _NO_CITATIONS, [], {"enabled": False}),
    supported("messages[].content[].content[].source", "of an image: base64 or url"),
    supported("messages[].content[].content[].source.type", "base64, url"),
    supported("messages[].content[].content[].source.media_type"),
    supported("messages[].content[].content[].source.data"),
    supported("messages[].content[].content[].source.url", _URL),
    refused("messages[].content[].content[].source.file_id", f"nothing is stored: {_SOURCES}"),
    refused("messages[].content[].content[].source.content", "send the document's text"),
    refused("messages[].content[].content[].transformations", "images are cut as the model was trained", {}),
    *_all_refused(
        "messages[].content[].content[].",
        _SERVER_RESULT,
        "content context encrypted_content page_age state_changes tabs title tool_name url",
    ),
    *_all_refused(
        "messages[].content[].content.",
        _SERVER_RESULT,
        "content encrypted_content encrypted_stdout error_code error_message file_type is_file_update lines new_lines "
        "new_start num_lines old_lines old_start retrieved_at return_code start_line stderr stdout stop_reason text "
        "tool_references total_lines type url",
    ),
    supported("messages[].content[].thinking", "of an assistant, for formats that have a place for it"),
    translated("messages[].content[].signature", "of thinking: not checked, and empty in answers"),
    refused("messages[].content[].data", "thinking that is encrypted says nothing here: leave the block out"),
    refused("messages[].content[].file_id", f"nothing is stored: {_SOURCES}"),
)

_TOOLS: tuple[Field, ...] = (
    supported("tools", f"at most {MAX_TOOLS}"),
    supported("tools[].type", "custom, which is also meant where it is missing; the vendor's own tools are refused"),
    supported("tools[].name"),
    supported("tools[].description"),
    supported("tools[].input_schema", f"a JSON Schema; {LOOSE}"),
    supported("tools[].strict", "true: a schema that cannot be enforced whole is an error"),
    *_cache("tools[].cache_control"),
    translated("tools[].eager_input_streaming", "input is always streamed as soon as it is certain"),
    refused("tools[].input_examples", "write them into the description", []),
    refused("tools[].defer_loading", "the model sees every tool from the start", False),
    refused("tools[].allowed_callers", "the model itself calls", ["direct"]),
    *_all_refused(
        "tools[].",
        _SERVER_TOOLS,
        "allowed_domains blocked_domains caching citations configs default_config display_height_px display_number "
        "display_width_px enable_zoom max_characters max_content_tokens max_tokens max_uses mcp_server_name model "
        "response_inclusion tools url_sources use_cache user_location",
    ),
    supported("tool_choice"),
    supported("tool_choice.type", "auto, any, tool, none"),
    supported("tool_choice.name"),
    supported("tool_choice.disable_parallel_tool_use"),
)

_THINKING: tuple[Field, ...] = (
    translated("thinking", "whether the reasoning of a model that reasons is in the answer; without it, it is not"),
    translated(
        "thinking.type",
        "adaptive, enabled: it is; disabled: it is left out, though the model may reason all the same; between_tools "
        "is refused",
    ),
    refused("thinking.budget_tokens", "reasoning has no limit of its own: leave it out, max_tokens limits the whole"),
    translated("thinking.display", "summarized: the reasoning itself, as there is no summary; omitted: it is left out"),
)

_OUTPUT: tuple[Field, ...] = (
    supported("output_config"),
    supported("output_config.format", "a schema that cannot be enforced is an error"),
    supported("output_config.format.type", "json_schema"),
    supported("output_config.format.schema", "a JSON Schema"),
    refused("output_config.effort", "these models have no levels", "high"),
)

_REFUSED: tuple[Field, ...] = (refused("speed", "there is one speed", "standard"),)

_COMMON: tuple[Field, ...] = (
    supported("model", "a served name or an alias"),
    *_BLOCKS,
    *_SYSTEM,
    *_TOOLS,
    *_THINKING,
    *_OUTPUT,
    *_cache("cache_control"),
    *_REFUSED,
)

# What only the client's beta types have.
_BETA: tuple[Field, ...] = (
    refused("mcp_servers", "the server opens no connections: call the servers' tools yourself", []),
    refused("context_management", "shorten the conversation yourself", {}),
    refused("compaction", "shorten the conversation yourself"),
    refused("billing_policy", "nothing is billed"),
    refused("output_config.task_budget", "use max_tokens"),
    refused("thinking.block_binding", "thinking is not checked"),
    refused("messages[].clear_at", "shorten the conversation yourself"),
    refused("messages[].output_config", "use the output_config of the request"),
    *_all_refused(
        "messages[].content[].",
        "only blocks of the vendor's own tools have it",
        "encrypted_content from mcp_server_name server_name to tool tool_changes tools trigger",
    ),
)

_MESSAGES_ONLY: tuple[Field, ...] = (
    supported("max_tokens", "1 or more"),
    supported("stream"),
    supported("stop_sequences", f"at most {MAX_STOPS}"),
    translated("metadata", _LABEL),
    translated("metadata.user_id", _LABEL),
    supported("service_tier", "auto, standard_only: all requests have one tier, standard"),
    refused("container", "no code is run: leave it out"),
    refused("diagnostics", "usage says how much of the prompt was cached"),
    refused("inference_geo", "the model runs where this server is"),
)

_BETA_MESSAGES_ONLY: tuple[Field, ...] = (
    refused("fallbacks", "name the model that is to answer", []),
    refused("fallback_credit_token", "nothing is billed"),
    refused("thread", "send the whole conversation"),
)

# The client's types have lost the first three; the API and older clients have them.
_SAMPLING: tuple[Field, ...] = (
    supported("temperature", "0 to 1; 0 is greedy"),
    supported("top_p"),
    supported("top_k", "0: off"),
    supported("min_p", "Herder's own"),
    supported("seed", "Herder's own: the same request with the same seed gives the same text"),
    supported("deadline", "Herder's own: seconds after which the answer ends with what there is"),
    translated("truncate_prompt_tokens", "-1: a prompt over the window loses its oldest part, and a header says so"),
)

_OUTPUT_FORMAT: tuple[Field, ...] = (
    translated("output_format", "the older name of output_config.format"),
    supported("output_format.type", "json_schema"),
    supported("output_format.schema", "a JSON Schema"),
)

MESSAGES = Table(
    "POST /v1/messages",
    "anthropic.types.MessageCreateParams, anthropic.types.beta.MessageCreateParams",
    (*_COMMON, *_MESSAGES_ONLY, *_BETA, *_BETA_MESSAGES_ONLY),
    (*_SAMPLING, *_OUTPUT_FORMAT),
)
COUNT_TOKENS = Table(
    "POST /v1/messages/count_tokens",
    "anthropic.types.MessageCountTokensParams, anthropic.types.beta.MessageCountTokensParams",
    (*_COMMON, *_BETA),
    _OUTPUT_FORMAT,
)
