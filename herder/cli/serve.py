"""herder serve: models for the clients of OpenAI, Anthropic, Gemini and Ollama."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from herder.cli.command import COUNT, FILE, INTEGER, MODEL, NUMBER, TEXT, Argument, Command, Option, Parsed
from herder.cli.generation import CHAT_FORMAT, LOADING, SPECULATE, TEMPLATE
from herder.core.errors import UsageError

if TYPE_CHECKING:
    from herder.serve.config import Config, ModelSpec


def serve(parsed: Parsed) -> int:
    from herder.serve import lifecycle
    from herder.serve.config import check_config

    config = _config(parsed)
    check_config(config)
    if parsed.check:
        print("\n".join(lifecycle.described(config)))
        return 0

    def ready(line: str) -> None:
        print(line, flush=True)

    return lifecycle.serve(config, ready)


def _config(parsed: Parsed) -> Config:
    """The file's configuration, with what the command line says in its place."""
    from herder.serve.config import Config, ModelSpec, byte_count, read_config

    config = read_config(parsed.config) if parsed.config is not None else Config()
    given = {
        "host": parsed.host,
        "port": parsed.port,
        "idle": parsed.idle,
        "parallel": parsed.parallel,
        "keys": parsed.keys,
        "responses": parsed.responses,
        "memory": byte_count(parsed.memory, "--memory") if parsed.memory is not None else None,
        "cors": tuple(parsed.cors) or None,
        "offline": parsed.offline or None,
        "lenient": parsed.lenient or None,
        "tls_certificate": parsed.tls_certificate,
        "tls_key": parsed.tls_key,
    }
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    limits = {"queue": parsed.max_queue, "body": parsed.max_body}
    config = replace(
        config, limits=replace(config.limits, **{name: value for name, value in limits.items() if value is not None})
    )
    if parsed.image_host:
        config = replace(config, images=replace(config.images, hosts=tuple(parsed.image_host)))
    logging = {"audit": parsed.audit, "prompts": parsed.log_prompts or None}
    config = replace(
        config, logging=replace(config.logging, **{name: value for name, value in logging.items() if value is not None})
    )
    named = {spec.name: spec for spec in config.models}
    loading = {
        "context": parsed.context,
        "threads": parsed.threads,
        "runtime": parsed.runtime if parsed.runtime != "native" else None,
        "device": parsed.device if parsed.device != "auto" else None,
        "dtype": parsed.dtype if parsed.dtype != "auto" else None,
        "prompt_dtype": parsed.prompt_dtype if parsed.prompt_dtype != "auto" else None,
        "speculate": parsed.speculate,
        "template": parsed.template,
        "chat_format": parsed.chat_format,
    }
    loading = {name: value for name, value in loading.items() if value is not None}
    if loading and not parsed.models:
        option = min(loading).replace("_", "-")
        raise UsageError(f"--{option} is of the models on the command line, and there is none: name one")
    for text in parsed.models:
        name, _, source = text.partition("=")
        # Whoever names a model here wants it now, so it is fetched and loaded at the start.
        spec = named.get(name, ModelSpec(name, source or name, pull=not config.offline))
        named[name] = replace(spec, preload=True, **loading)
    if not named:
        named = {spec.name: spec for spec in _found()}
    return replace(config, models=_with_aliases(named, parsed.alias))


def _found() -> list[ModelSpec]:
    """What is served when nobody says what: the default model from the start, what else is here on demand."""
    from herder.serve.config import ModelSpec
    from herder.weights import store
    from herder.weights.registry import DEFAULT

    here = [ModelSpec(model.name, model.name) for model in store.list_models() if model.name != DEFAULT]
    return [ModelSpec(DEFAULT, DEFAULT, preload=True, pull=True), *here]


def _with_aliases(named: dict[str, ModelSpec], aliases: list[str]) -> tuple[ModelSpec, ...]:
    for text in aliases:
        alias, equals, name = text.partition("=")
        if not equals or not alias:
            raise UsageError(f"--alias is {text!r}: write --alias gpt-4o-mini=smollm2")
        if name not in named:
            raise UsageError(f"--alias {alias} is to mean {name!r}, which is not served: known are {', '.join(named)}")
        named[name] = replace(named[name], aliases=(*named[name].aliases, alias))
    return tuple(named.values())


COMMANDS = {
    "serve": Command(
        name="serve",
        summary="Serve models to the clients of OpenAI, Anthropic, Gemini and Ollama",
        run=serve,
        arguments=(
            Argument("models", MODEL, "Models to serve; NAME=MODEL gives one another name", optional=True, many=True),
        ),
        options=(
            Option("--host", TEXT, "The address to listen on; 127.0.0.1 unless given, others only with --keys"),
            Option("--port", INTEGER, "The port; 8080 unless given, 0 takes a free one"),
            Option("--config", FILE, "A TOML file; what the command line says comes before it"),
            Option("--check", None, "Check the configuration, print what would run, and end"),
            Option("--alias", TEXT, "ALIAS=NAME: another name for a served model; again for each", many=True),
            Option("--keys", FILE, "The database of API keys, which `herder keys create` makes"),
            Option("--responses", FILE, "The file of stored responses, or off; one in the state folder unless given"),
            Option("--memory", TEXT, "Memory for all models together, such as 24GiB; without it, what is free"),
            Option("--parallel", COUNT, "Sequences of the full context that a KV cache is to hold; 8 unless given"),
            Option("--idle", NUMBER, "Unload a model after so many seconds without a request; 0 never does"),
            Option("--max-queue", INTEGER, "Requests that may wait for a model; more are told when to come again"),
            Option("--max-body", INTEGER, "Most bytes of a request"),
            Option("--cors", TEXT, "An origin whose pages may call the server; may be given several times", many=True),
            Option("--image-host", TEXT, "A host to fetch images from, *.NAME or * for any; again for each", many=True),
            Option("--tls-certificate", FILE, "A PEM file; with --tls-key the server speaks HTTPS"),
            Option("--tls-key", FILE, "The certificate's key, PEM, readable by nobody else"),
            Option("--audit", FILE, "A file to which a JSON line is written for each request: who asked for what"),
            Option("--log-prompts", None, "Write prompts to the log and the audit file, where they are not otherwise"),
            Option("--lenient", None, "Leave out fields that are not supported, and name them in a header"),
            SPECULATE,
            TEMPLATE,
            CHAT_FORMAT,
            *LOADING,
        ),
        details="""
        Models named here are loaded before the server says that it is ready; those of a configuration with preload =
        true too, others when they are first asked for. Without any, the default model and every model on this machine
        are served. A model that is not served is an error; none is fetched unless its configuration says pull = true.
        SIGTERM and Ctrl-C end the server when running answers are finished, at most 30 seconds later; a second one ends
        it at once. Images that requests name by URL are refused, but for those on hosts that --image-host or the
        configuration names. The log goes to standard error, one JSON object a line.
        """,
        examples=(
            "herder serve smollm2",
            "herder serve llama3.2:1b --alias gpt-4o-mini=llama3.2:1b --port 8000",
            "herder serve --config herder.toml --check",
            "curl http://127.0.0.1:8080/v1/models",
        ),
    )
}
