"""Every field of OpenAI's responses: of a new one, of a count, of one that is read back, of the list of its input."""

from __future__ import annotations

from herder.serve.dialects import openai_constraints, openai_options
from herder.serve.dialects.openai_chat_request import URLS
from herder.serve.fields import LOOSE, STRICT, Field, Table, refused, supported, translated

MAX_ITEMS = 4096
MAX_PARTS = 1024
MAX_TOOLS = 512

TOOL_KINDS = "only functions are called: nothing is fetched or run while serving"
_LABEL = "a label that changes no answer; it comes back with the answer"
_CACHED = "not needed: every prefix is cached while there is room"
_TTL = "prefixes are kept while there is room for them"
_FILES = "no files are kept: send the text itself"


def _each(prefix: str, names: str, note: str) -> tuple[Field, ...]:
    return tuple(refused(prefix + name, note) for name in names.split())


def _breakpoint(path: str) -> tuple[Field, ...]:
    return (
        translated(f"{path}.prompt_cache_breakpoint", _CACHED),
        translated(f"{path}.prompt_cache_breakpoint.mode", "explicit is the only one"),
        refused(f"{path}.prompt_cache_breakpoint.ttl", _TTL),
    )


_INPUT: tuple[Field, ...] = (
    supported("input", f"a text or items, at most {MAX_ITEMS}"),
    supported(
        "input[].type", "message, function_call, function_call_output, reasoning, item_reference; others are refused"
    ),
    translated("input[].id", "kept; the model does not see it"),
    translated("input[].status", "kept; a function_call that is incomplete is left out of the prompt"),
    translated("input[].role", "user, assistant, system; developer is read as system"),
    supported("input[].content", "of a message, a text or parts; of a reasoning item, its text"),
    translated(
        "input[].content[].type", "input_text, output_text, input_image, reasoning_text; refusal is read as text"
    ),
    supported("input[].content[].text"),
    translated("input[].content[].refusal", "read as text"),
    supported("input[].content[].image_url", URLS),
    supported("input[].content[].detail", "auto or high, which are the same; low and original are refused"),
    translated("input[].content[].annotations", "kept; the model does not see them"),
    translated("input[].content[].logprobs", "not kept; the model does not see them"),
    *_breakpoint("input[].content[]"),
    *_each("input[].content[].", "file_data file_id file_url filename", _FILES),
    supported("input[].call_id"),
    supported("input[].name", "of a function_call"),
    supported("input[].arguments", "a JSON object, as text"),
    supported("input[].output", "of a function_call_output, a text or parts"),
    supported("input[].output[].type", "input_text, input_image"),
    supported("input[].output[].text"),
    supported("input[].output[].image_url", URLS),
    supported("input[].output[].detail", "auto or high, which are the same; low and original are refused"),
    *_breakpoint("input[].output[]"),
    *_each("input[].output[].", "file_data file_id file_url filename", _FILES),
    *_each("input[].output[].", "outcome stderr stdout", TOOL_KINDS),
    *_each("input[].output.", "type file_id image_url", TOOL_KINDS),
    supported(
        "input[].summary",
        "of a reasoning item, which belongs to the message or call behind it: stands for its text where it has no "
        "content; left out where the chat format has no place for thoughts",
    ),
    supported("input[].summary[].type", "summary_text"),
    supported("input[].summary[].text"),
    refused("input[].encrypted_content", "reasoning comes and goes in the open: send the item's content"),
    refused("input[].phase", "no chat format has a place for it"),
    refused("input[].async", "calls are answered in turn", False),
    refused("input[].caller", "functions are called by the model only", {"type": "direct"}),
    refused("input[].namespace", "functions have one name"),
    *_each(
        "input[].",
        "acknowledged_safety_checks action actions approval_request_id approve background code container_id "
        "environment error execution fingerprint input max_output_length operation output_format outputs "
        "pending_safety_checks quality queries reason reasoning result results revised_prompt server_label size "
        "svg_usage text tools",
        TOOL_KINDS,
    ),
)

_TOOLS: tuple[Field, ...] = (
    supported("tools", f"at most {MAX_TOOLS}"),
    supported(
        "tools[].type",
        "function; web_search, file_search, code_interpreter, computer, mcp, image_generation, custom and the like are "
        "refused",
    ),
    supported("tools[].name"),
    supported("tools[].description"),
    supported("tools[].parameters", f"a JSON Schema; {LOOSE}"),
    supported("tools[].strict", STRICT),
    refused("tools[].allowed_callers", "functions are called by the model only", ["direct"]),
    refused("tools[].async", "calls are answered in turn", False),
    refused("tools[].defer_loading", "the model sees all tools", False),
    refused("tools[].output_schema", "no chat format has a place for it: describe the result in the description"),
    *_each(
        "tools[].",
        "action allowed_tools authorization background complexity connector_id container display_height display_width "
        "environment execution external_web_access filters format frame_count frame_duration_ms headers input_fidelity "
        "input_image_mask max_num_results model moderation output_compression output_format partial_images quality "
        "ranking_options require_approval search_content_types search_context_size server_description server_label "
        "server_url size svg tools tunnel_id user_location vector_store_ids",
        TOOL_KINDS,
    ),
    supported("tool_choice", "none, auto, required, a function or allowed_tools"),
    supported("tool_choice.type", "function, allowed_tools"),
    supported("tool_choice.name"),
    supported("tool_choice.mode"),
    translated("tool_choice.tools", "the model is shown the allowed tools only"),
    refused("tool_choice.server_label", TOOL_KINDS),
)

_FIELDS: tuple[Field, ...] = (
    supported("model", "a served name or an alias"),
    supported("instructions", "stand before everything else; those of the previous response are not inherited"),
    supported("previous_response_id", "of a response that this key has stored"),
    supported("store", "default true, or false where the server stores nothing; kept within the server's bounds"),
    supported("stream"),
    supported("stream_options", "only with stream"),
    refused("stream_options.include_obfuscation", "events are not padded: leave it out", False),
    supported("text"),
    supported("text.format"),
    supported("text.format.type", "text, json_object, json_schema; a schema that cannot be enforced is an error"),
    supported("text.format.schema"),
    translated("text.format.name", "a label; the model does not see it"),
    translated("text.format.strict", "always enforced, whether asked for or not"),
    refused("text.format.description", "write it into the instructions"),
    refused("text.verbosity", "say in the instructions how long the answer shall be", "medium"),
    supported("parallel_tool_calls"),
    supported("max_output_tokens", "default: until the model stops or the context is full"),
    translated("max_tool_calls", "counts calls of built-in tools only, and there are none"),
    supported("temperature", "0 to 100; 0 is greedy"),
    supported("top_p"),
    supported("top_logprobs", "0 to 20; more than 0 includes message.output_text.logprobs"),
    supported("truncation", "auto leaves out the oldest turns and says how many tokens; disabled, the default"),
    supported("include", "message.output_text.logprobs, message.input_image.image_url; others are refused"),
    supported("metadata", "stored, and comes back with the answer"),
    supported("reasoning"),
    refused(
        "reasoning.effort", "these models have no levels; chat_template_kwargs passes what a format takes", "medium"
    ),
    translated(
        "reasoning.summary", "auto, detailed: the reasoning itself, whole, stands in `summary`; concise is refused"
    ),
    refused("reasoning.generate_summary", "that is spelled summary"),
    refused("reasoning.context", "the chat format says which turns' reasoning the model sees", "auto"),
    refused("reasoning.mode", "there is one", "standard"),
    translated("service_tier", "auto or default; the answer says default"),
    translated("user", _LABEL),
    translated("safety_identifier", _LABEL),
    translated("prompt_cache_key", _LABEL + "; one cache serves all requests"),
    supported("prompt_cache_options"),
    refused("prompt_cache_options.mode", "prefixes are cached by themselves", "implicit"),
    refused("prompt_cache_options.ttl", _TTL),
    refused("prompt_cache_options.prewarm", "send the request with max_output_tokens 1", False),
    refused("prompt_cache_options.comparison_response_id", "usage says how many tokens were cached"),
    refused("prompt_cache_retention", "prefixes are kept in memory, while there is room for them", "in_memory"),
    refused("background", "answers are given while the client waits", False),
    refused("background_options", "answers are given while the client waits"),
    refused("conversation", "use previous_response_id"),
    refused("prompt", "no prompt templates are kept: send instructions and input"),
    refused("context_management", "use truncation"),
    refused("moderation", "this endpoint judges nothing"),
    refused("access_programs", "there are none"),
    refused("image", "images are cut as the model was trained"),
)

_ADDED: tuple[Field, ...] = (
    supported("frequency_penalty", "as in chat completions"),
    supported("presence_penalty", "as in chat completions"),
    supported("logit_bias", "as in chat completions"),
    supported("seed", "as in chat completions"),
    supported("stop", "as in chat completions"),
    translated("chat_template_kwargs", "the options of the model's chat format (docs/chat.md)"),
    refused("max_tokens", "that is spelled max_output_tokens here"),
    refused("max_completion_tokens", "that is spelled max_output_tokens here"),
    refused("messages", "that is spelled input here"),
    refused("response_format", "that is spelled text.format here"),
    refused("reasoning_effort", "that is spelled reasoning.effort here"),
    refused("n", "one answer is given", 1),
    # What clients send back of the items that they were given.
    refused("input[].content[].parsed", "send the text"),
    refused("input[].parsed_arguments", "send the arguments as text"),
)

TABLE = Table(
    "POST /v1/responses",
    "openai.types.responses.ResponseCreateParams",
    (*_INPUT, *_TOOLS, *_FIELDS),
    (
        *_ADDED,
        *(field for field in openai_options.EXTENSIONS if field.name != "truncate_prompt_tokens"),
        *openai_constraints.EXTENSIONS,
    ),
)

# A count takes what makes the prompt.
_COUNTED = ("input", "tools", "tool_choice", "text", "reasoning")
_COUNTED_TOO = ("model", "instructions", "previous_response_id", "parallel_tool_calls", "truncation", "conversation")


def _is_counted(field: Field) -> bool:
    name = field.name.partition(".")[0].removesuffix("[]")
    return name in _COUNTED or field.name in _COUNTED_TOO


COUNT = Table(
    "POST /v1/responses/input_tokens",
    "openai.types.responses.InputTokenCountParams",
    (
        *(field for field in TABLE.fields if _is_counted(field)),
        refused("personality", "say in the instructions how the model shall sound"),
    ),
    (
        *(field for field in TABLE.extensions if field.name.startswith("input[]")),
        supported("chat_template_kwargs", "the options of the model's chat format (docs/chat.md)"),
    ),
)

_INCLUDE = supported("include", "what was stored comes whole; what was not asked for then is not there")
_NO_BACKGROUND = "only a response that runs in the background can be followed, and none does"
RETRIEVE = Table(
    "GET /v1/responses/{response_id}",
    "openai.types.responses.ResponseRetrieveParams",
    (
        _INCLUDE,
        refused("include_obfuscation", "events are not padded", "false"),
        refused("starting_after", _NO_BACKGROUND),
        refused("stream", _NO_BACKGROUND, "false"),
    ),
)
INPUT_ITEMS = Table(
    "GET /v1/responses/{response_id}/input_items",
    "openai.types.responses.InputItemListParams",
    (
        supported("after", "the id of an item of the list"),
        _INCLUDE,
        supported("limit", "1 to 100; default 20"),
        supported("order", "desc, the default, or asc"),
    ),
)
