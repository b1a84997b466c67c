"""Every field of Ollama's API, and what becomes of it."""

from __future__ import annotations

from herder.serve.fields import LOOSE, Field, Table, refused, supported, translated

MAX_MESSAGES = 4096
MAX_TOOLS = 512
MAX_IMAGES = 64
MAX_INPUTS = 2048
MAX_STOPS = 64
MAX_TOP = 20

_MODEL = supported("model", "a served name or an alias, with or without :latest")
_NAME = translated("name", "the old word for model")
_STREAM = supported("stream", "true unless it is said to be false")
_KEEP_ALIVE = supported(
    "keep_alive", 'seconds, or text such as "5m"; 0 unloads the model when nobody uses it, a negative one keeps it'
)
_FORMAT = supported("format", "json, or a JSON Schema; one that cannot be enforced is an error")
_THINK = translated("think", "true or false; false leaves the thoughts out of the answer; levels are refused")
_TRUNCATE = translated(
    "truncate",
    "true: a prompt over the window loses its oldest part, and the header x-herder-truncated-tokens says how much; "
    "default false: an error with the numbers",
)
_SHIFT = refused("shift", "an answer ends where the context does, with done_reason length", False)
_PENALTIES = "over the whole text"
_OWNER = "whoever runs the server decides that"

_OPTIONS: tuple[Field, ...] = (
    supported("options"),
    translated("options.num_ctx", "up to the context that the model is loaded with; more is an error with the numbers"),
    supported("options.num_predict", "-1, -2 and none at all: until the model stops or the context is full"),
    supported("options.seed", "-1: one is drawn"),
    supported("options.stop", f"a list of at most {MAX_STOPS} strings"),
    supported("options.temperature", "0 to 100; 0 is greedy; default: what the model's maker recommends"),
    supported("options.top_k", "0 or -1: off"),
    supported("options.top_p"),
    supported("options.min_p"),
    supported("options.repeat_penalty", f"{_PENALTIES}; 1: off"),
    supported("options.presence_penalty", _PENALTIES),
    supported("options.frequency_penalty", _PENALTIES),
    refused("options.repeat_last_n", "penalties look at the whole text, which is -1", -1),
    refused("options.penalize_newline", "a line's end counts as any token does", True),
    refused("options.tfs_z", "use min_p or top_p", 1, 1.0),
    refused("options.typical_p", "use min_p or top_p", 1, 1.0),
    refused("options.mirostat", "use min_p or top_p", 0),
    refused("options.mirostat_tau", "use min_p or top_p", 5, 5.0),
    refused("options.mirostat_eta", "use min_p or top_p", 0.1),
    refused("options.num_keep", "nothing is shifted out of the context", -1, 0, 4),
    refused("options.numa", _OWNER, False),
    refused("options.num_batch", "the server batches all requests together", 512),
    refused("options.num_gpu", _OWNER, -1),
    refused("options.main_gpu", _OWNER, 0),
    refused("options.num_thread", _OWNER, 0),
    refused("options.low_vram", _OWNER, False),
    refused("options.f16_kv", _OWNER, True),
    refused("options.logits_all", "use logprobs", False),
    refused("options.vocab_only", "the whole model is loaded", False),
    refused("options.embedding_only", "the whole model is loaded", False),
    refused("options.use_mmap", "model files are always mapped", True),
    refused("options.use_mlock", _OWNER, False),
    refused("options.draft_num_predict", _OWNER, 0),
)
_LOGPROBS = (
    supported("logprobs", "true or false"),
    supported("top_logprobs", f"0 to {MAX_TOP}, with logprobs"),
)

CHAT = Table(
    "POST /api/chat",
    "ollama.ChatRequest, and ChatRequest of Ollama's api/types.go",
    (
        _MODEL,
        supported("messages", f"at most {MAX_MESSAGES}; none: the model is loaded, or with keep_alive 0 unloaded"),
        supported("messages[].role", "system, user, assistant or tool"),
        supported("messages[].content"),
        supported("messages[].thinking", "of an assistant, for formats that have a place for it"),
        supported("messages[].images", "base64; they stand before the text"),
        supported("messages[].tool_name"),
        supported("messages[].tool_call_id", "without it, results are matched to calls by name and order"),
        supported("messages[].tool_calls"),
        supported("messages[].tool_calls[].id"),
        supported("messages[].tool_calls[].function"),
        supported("messages[].tool_calls[].function.name"),
        supported("messages[].tool_calls[].function.arguments", "an object"),
        translated("messages[].tool_calls[].function.index", "the order of the list"),
        supported("tools", f"at most {MAX_TOOLS}"),
        supported("tools[].type", "function"),
        supported("tools[].function"),
        supported("tools[].function.name"),
        supported("tools[].function.description"),
        supported("tools[].function.parameters", f"a JSON Schema; {LOOSE}"),
        _STREAM,
        _FORMAT,
        *_OPTIONS,
        _THINK,
        _KEEP_ALIVE,
        *_LOGPROBS,
        _TRUNCATE,
        _SHIFT,
    ),
)

GENERATE = Table(
    "POST /api/generate",
    "ollama.GenerateRequest, and GenerateRequest of Ollama's api/types.go",
    (
        _MODEL,
        supported(
            "prompt",
            "a user's message; of a model without a chat format, the text that is continued. None: the "
            "model is loaded, or with keep_alive 0 unloaded",
        ),
        supported("suffix", "for models that fill gaps in (Code Llama)"),
        supported("system"),
        refused("template", "the model's own is used; with raw, the prompt is taken as it is", ""),
        refused("context", "send the conversation to /api/chat; what is computed already is cached all the same", []),
        supported("raw", "the prompt is continued as it is"),
        supported("images", "base64; they stand before the text"),
        _STREAM,
        _FORMAT,
        *_OPTIONS,
        _THINK,
        _KEEP_ALIVE,
        *_LOGPROBS,
        _TRUNCATE,
        _SHIFT,
        refused("width", "no model here makes images", 0),
        refused("height", "no model here makes images", 0),
        refused("steps", "no model here makes images", 0),
    ),
)

_SAMPLES = tuple(
    translated(field.name, "an embedding samples nothing: it changes none")
    if field.status == "supported" and field.name != "options"
    else field
    for field in _OPTIONS
)
EMBED = Table(
    "POST /api/embed",
    "ollama.EmbedRequest",
    (
        _MODEL,
        supported("input", f"a text, or a list of at most {MAX_INPUTS}; none: the model is loaded"),
        translated(
            "truncate",
            "true: an input over the window loses its end, and the header x-herder-truncated-tokens says how much; "
            "default false: an error with the numbers",
        ),
        supported("dimensions"),
        _KEEP_ALIVE,
        *_SAMPLES,
    ),
)
EMBEDDINGS = Table(
    "POST /api/embeddings",
    "ollama.EmbeddingsRequest",
    (_MODEL, supported("prompt", "none: the model is loaded"), _KEEP_ALIVE, *_SAMPLES),
)
SHOW = Table(
    "POST /api/show",
    "ollama.ShowRequest, and ShowRequest of Ollama's api/types.go",
    (
        _MODEL,
        _NAME,
        refused("verbose", "the tokenizer is in the model's file", False),
        refused("system", "nothing is kept under another system prompt", ""),
        refused("template", "the model's own is used", ""),
        refused("options", "nothing is kept under other options", {}),
    ),
)
PULL = Table(
    "POST /api/pull",
    "ollama.PullRequest, and PullRequest of Ollama's api/types.go",
    (
        supported("model", "as `herder pull` takes it, with or without :latest; no path"),
        _NAME,
        _STREAM,
        refused("insecure", "HF_ENDPOINT says which hub is asked", False),
        refused("username", "HF_TOKEN of the server says who asks", ""),
        refused("password", "HF_TOKEN of the server says who asks", ""),
    ),
)
DELETE = Table("DELETE /api/delete", "ollama.DeleteRequest", (_MODEL, _NAME))
TAGS = Table("GET /api/tags", "ollama.Client.list", ())
PS = Table("GET /api/ps", "ollama.Client.ps", ())
VERSION = Table("GET /api/version", "Ollama's server/routes.go", ())

# What Ollama has and a server of Herder's has not, and what to do instead.
REMEDIES = {
    "POST /api/create": "models are files, and `herder convert` makes one of another",
    "POST /api/copy": "give a model another name with `aliases` in the configuration",
    "POST /api/push": "upload the model's files with the hub's own client",
    "POST /api/blobs/{digest}": "put the model's file on the server and name its path in the configuration",
    "HEAD /api/blobs/{digest}": "put the model's file on the server and name its path in the configuration",
}


def _not_served(request: str, source: str, *names: str) -> Table:
    return Table(request, source, tuple(refused(name, REMEDIES[request]) for name in names))


NOT_SERVED = (
    _not_served(
        "POST /api/create", "ollama.CreateRequest", "model", "stream", "from", "files", "adapters", "template",
        "license", "system", "parameters", "messages", "quantize",
    ),
    _not_served("POST /api/copy", "ollama.CopyRequest", "source", "destination"),
    _not_served("POST /api/push", "ollama.PushRequest", "model", "stream", "insecure"),
    _not_served("POST /api/blobs/{digest}", "ollama.Client.create_blob", "digest"),
)  # fmt: skip
