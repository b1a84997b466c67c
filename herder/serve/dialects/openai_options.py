"""What OpenAI's two APIs for text share: sampling, stopping, streaming, and the fields that other servers added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herder.core.errors import UsageError
from herder.core.request import Sampling
from herder.serve import values
from herder.serve.fields import Field, FieldError, Table, checked, refused, supported, translated

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_BIASES = 1024
MAX_STOP_TOKENS = 1024

FIELDS: tuple[Field, ...] = (
    supported("model", "a served name or an alias"),
    supported("frequency_penalty"),
    supported("presence_penalty"),
    supported("logit_bias", f"at most {MAX_BIASES} tokens, by the ids of the model's own vocabulary"),
    supported("n", f"at most {MAX_CHOICES}"),
    supported("seed", "the same request with the same seed gives the same text; the n answers have seeds of their own"),
    supported("stop", f"at most {MAX_STOPS} strings"),
    supported("stream"),
    supported("stream_options", "only with stream"),
    supported("stream_options.include_usage"),
    refused("stream_options.include_obfuscation", "chunks are not padded: leave it out", False),
    supported("temperature", "0 to 100; 0 is greedy"),
    supported("top_p"),
    translated("user", "a label that changes no answer; it is not kept"),
)

RENAMED = "that is spelled {} here"
EXTENSIONS: tuple[Field, ...] = (
    supported("top_k", "0 or -1: off"),
    supported("min_p"),
    supported("repetition_penalty", "1: off"),
    supported("stop_token_ids"),
    supported("ignore_eos"),
    translated("truncate_prompt_tokens", "-1: a prompt over the window loses its oldest part, and the answer says so"),
    supported("deadline", "Herder's own: seconds after which the answer ends with what there is"),
    refused("repeat_penalty", RENAMED.format("repetition_penalty") + ", over the whole text", 1, 1.0),
    refused("repeat_last_n", "repetition_penalty looks at the whole text"),
    refused("n_predict", RENAMED.format("max_tokens"), -1),
    refused("n_probs", RENAMED.format("logprobs"), 0),
    refused("cache_prompt", "every prompt is cached", True),
    refused("id_slot", "there are no slots: leave it out", -1),
    refused("typical_p", "use min_p or top_p", 1, 1.0),
    refused("mirostat", "use min_p or top_p", 0),
    refused("min_tokens", "use ignore_eos with max_tokens", 0),
    refused("include_stop_str_in_output", "an answer ends before the stop string", False),
    refused("skip_special_tokens", "control tokens are no text", True),
    refused("spaces_between_special_tokens", "control tokens are no text", True),
    refused("use_beam_search", "ask for n answers and their logprobs", False),
    refused("length_penalty", "there is no beam search", 1, 1.0),
    refused("prompt_logprobs", "use echo and logprobs of /v1/completions, or /v1/score"),
    refused("allowed_token_ids", "use logit_bias, or structured_outputs.grammar"),
    refused("bad_words", "use logit_bias", []),
    refused("priority", "the server serves all in turn", 0),
    refused("cache_salt", "cached prompts are shared by all; a server of one's own shares nothing"),
    refused("return_token_ids", "use /tokenize", False),
    refused("request_id", "send the header x-request-id"),
)


def given(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a client has said: null says nothing."""
    return {name: value for name, value in body.items() if value is not None}


def model(body: Mapping[str, Any]) -> str:
    if "model" not in body:
        raise FieldError("model is missing: name a served one", "model")
    return values.text(body["model"], "model", 1024)


def options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling and stopping options (herder.llm.Options) that a body sets; not logprobs and the maximum, which the
    two APIs spell differently. Raises FieldError."""
    found: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if name in body:
            found[name] = values.number(body[name], name)
    if "top_k" in body:
        found["top_k"] = max(0, values.integer(body["top_k"], "top_k", -1, 2**31 - 1))
    if "seed" in body:
        found["seed"] = values.integer(body["seed"], "seed", -(2**63), 2**64 - 1) % 2**64  # OpenAI's is signed
    if "logit_bias" in body:
        found["logit_bias"] = _biases(body["logit_bias"])
    if "stop" in body:
        found["stop"] = _stops(body["stop"])
    if "stop_token_ids" in body:
        ids = values.listed(body["stop_token_ids"], "stop_token_ids", MAX_STOP_TOKENS)
        found["stop_tokens"] = tuple(
            values.integer(one, f"stop_token_ids[{i}]", 0, 2**31 - 1) for i, one in enumerate(ids)
        )
    if "ignore_eos" in body:
        found["ignore_eos"] = values.boolean(body["ignore_eos"], "ignore_eos")
    check_sampling(found)
    return found


def check_sampling(found: Mapping[str, Any]) -> None:
    """Raises FieldError for a value that is out of range."""
    sampling = {name: value for name, value in found.items() if name in Sampling.__dataclass_fields__}
    sampling.pop("logit_bias", None)
    try:
        Sampling(**sampling)
    except UsageError as error:
        raise FieldError(str(error), str(error).partition(" ")[0]) from None


def common(body: Mapping[str, Any], table: Table, dropped: list[str] | None) -> dict[str, Any]:
    """The arguments of wire.Common besides `options` and `constraint`."""
    stream = values.boolean(body.get("stream", False), "stream")
    usage = False
    if "stream_options" in body:
        inner = values.mapping(body["stream_options"], "stream_options")
        if not stream:
            raise FieldError(
                "stream_options is given, but stream is not true: set it, or leave this out", "stream_options"
            )
        inner = given(checked(inner, table, dropped, "stream_options."))
        usage = values.boolean(inner.get("include_usage", False), "stream_options.include_usage")
    found: dict[str, Any] = {"model": model(body), "stream": stream, "stream_usage": usage}
    if "n" in body:
        found["n"] = values.integer(body["n"], "n", 1, MAX_CHOICES)
    if "truncate_prompt_tokens" in body:
        found["truncate"] = truncation(body["truncate_prompt_tokens"])
    if "deadline" in body:
        found["deadline"] = values.number(body["deadline"], "deadline", 0.001, 86400)
    return found


def truncation(value: Any) -> bool:
    if values.integer(value, "truncate_prompt_tokens") != -1:
        raise FieldError(
            f"truncate_prompt_tokens is {values.kind(value)}: only -1 is known, which keeps what the window holds",
            "truncate_prompt_tokens",
        )
    return True


def _biases(value: Any) -> dict[int, float]:
    found = values.mapping(value, "logit_bias")
    if len(found) > MAX_BIASES:
        raise FieldError(f"logit_bias has {len(found)} tokens: at most {MAX_BIASES} are taken", "logit_bias")
    biases = {}
    for key, bias in found.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise FieldError(f"logit_bias has the key {values.kind(key)}: expected a token id", "logit_bias")
        biases[int(key)] = values.number(bias, f"logit_bias.{key}", -100, 100)
    return biases


def _stops(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    stops = values.listed(value, "stop", MAX_STOPS)
    found = tuple(values.text(one, f"stop[{i}]", 1024) for i, one in enumerate(stops))
    if "" in found:
        raise FieldError("stop has an empty string: every answer would end at once", "stop")
    return found
