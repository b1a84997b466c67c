"""What a server is to be: its configuration as data, from TOML and the command line, every unknown key refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from herder.core.errors import UsageError

GiB = 2**30
OFF = "off"  # as the file of stored responses: none is stored
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model, `[models.NAME]`. name: what clients ask for. source: as herder.load() takes it; the name when it
    is not given. aliases: further names. preload: load it when the server starts. pull: fetch it when it is first asked
    for and not on this machine. The rest are the options of herder.load(); kv_memory in bytes; idle: seconds after
    which it is unloaded, instead of the server's."""

    name: str
    source: str = ""
    aliases: tuple[str, ...] = ()
    preload: bool = False
    pull: bool = False
    context: int | None = None
    kv_memory: int | None = None
    runtime: Literal["native", "torch"] = "native"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    prompt_dtype: Literal["auto", "int8", "bfloat16"] = "auto"
    threads: int = 0
    speculate: int = 0
    template: str | None = None  # a file
    chat_format: str | None = None
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`. body: bytes of a request. depth: of nested JSON. queue: requests that may wait, per model, beyond
    those that run. choices: answers to one request (n times its prompts). body_seconds: to receive a body. deadline:
    seconds after which any answer ends, 0 for none. drain: seconds that streams may go on after SIGTERM. keep_alive:
    seconds of silence in a stream before a comment is sent. images: of a conversation; image_pixels: of all of them
    together; image_urls: of them that are URLs; image_seconds: to fetch one. responses, responses_bytes: the most that
    are stored; responses_days: after which a conversation that rests is forgotten."""

    body: int = 32 * 2**20
    depth: int = 64
    queue: int = 128
    choices: int = 128
    body_seconds: float = 60.0
    deadline: float = 0.0
    drain: float = 30.0
    keep_alive: float = 15.0
    images: int = 32
    image_pixels: int = 2**27  # a PNG's take up to 20 ns each to decode
    image_urls: int = 16
    image_seconds: float = 10.0
    responses: int = 100_000
    responses_bytes: int = 4 * GiB
    responses_days: float = 30.0


@dataclass(frozen=True, slots=True)
class Logging:
    """`[logging]`. requests: one JSON line for each on standard error. prompts: with their text, for debugging.
    audit: a file that a line about each authorized request is appended to. traces: the URL of an OpenTelemetry
    collector (OTLP over HTTP), which the server then connects to."""

    requests: bool = True
    prompts: bool = False
    audit: str | None = None
    traces: str | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """`[images]`. hosts: those that images in requests may be fetched from: names, `*.NAME` for every name below one,
    `*` for all; none unless given. http: without TLS too. ports: besides 443 (and 80 with http). Addresses that are not
    public are never connected to, whatever stands here."""

    hosts: tuple[str, ...] = ()
    http: bool = False
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole. hosts: names besides the bound address by which clients may call the server (the Host header). memory:
    bytes for all models together, None for what is free. parallel: sequences of the full context that a model's KV
    cache is to hold where memory allows. idle: seconds after which an unused model is unloaded, 0 for never. cors:
    origins whose pages may call, or "*". keys: the database of API keys; None: no keys, on loopback only. responses:
    the file of stored responses, or OFF; None: in Herder's state folder. tls_certificate, tls_key: PEM files. lenient:
    drop unknown and refused fields and name them in the header x-herder-ignored-fields. pull: whoever administers may
    fetch and delete models while it runs. images: where those that requests name by URL may be fetched from."""

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    memory: int | None = None
    parallel: int = 8
    idle: float = 0.0
    offline: bool = False
    pull: bool = False
    lenient: bool = False
    cors: tuple[str, ...] = ()
    keys: str | None = None
    responses: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    images: Images = field(default_factory=Images)
    logging: Logging = field(default_factory=Logging)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_certificate else 'http'}://{host}:{self.port}"


T = TypeVar("T")


def read_config(path: str | Path) -> Config:
    """A TOML file. Raises UsageError that names the key and what it should be. Relative paths are of its folder."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return parse_config(document, Path(path).parent)


def parse_config(document: Mapping[str, Any], folder: Path | None = None) -> Config:
    values = dict(document)
    tables = values.pop("models", {})
    if not isinstance(tables, Mapping):
        raise UsageError("models is no table: write [models.NAME]")
    models = tuple(_model(name, table, folder) for name, table in tables.items())
    nested = {"limits": Limits, "images": Images, "logging": Logging}
    made: dict[str, Any] = {
        name: _table(kind, values.pop(name), f"{name}.") for name, kind in nested.items() if name in values
    }
    config = replace(_table(Config, values, "", leave=("models", *nested)), models=models, **made)
    config = replace(config, **_absolute(config, ("keys", "responses", "tls_certificate", "tls_key"), folder))
    logging = replace(config.logging, **_absolute(config.logging, ("audit",), folder))
    return replace(config, logging=logging)


def _model(name: str, table: Any, folder: Path | None) -> ModelSpec:
    if not isinstance(table, Mapping):
        raise UsageError(f"models.{name} is no table: write [models.{name}]")
    spec = _table(ModelSpec, {**table, "name": name}, f"models.{name}.")
    return replace(spec, source=spec.source or name, **_absolute(spec, ("template",), folder))


def check_config(config: Config) -> None:
    """What no single value shows. Raises UsageError."""
    from herder.assemble import check_runtime
    from herder.serve.image_urls import check_images

    check_images(config.images)
    names: dict[str, str] = {}
    for spec in config.models:
        check_runtime(spec.runtime, spec.device, spec.dtype, spec.prompt_dtype)
        for name in (spec.name, *spec.aliases):
            if not name:
                raise UsageError(f"models.{spec.name} has an empty name: give it a name")
            if name in names:
                raise UsageError(f"{name!r} names both {names[name]} and {spec.name}: a name has one model")
            names[name] = spec.name
    if not 0 <= config.port < 65536:
        raise UsageError(f"port is {config.port}: must be between 0 (any free one) and 65535")
    if config.host not in LOOPBACK and config.keys is None:
        raise UsageError(
            f"host is {config.host}, which other machines reach, but there are no API keys: make one with `herder keys "
            "create NAME` and give the file with --keys, or bind 127.0.0.1"
        )
    if (config.tls_certificate is None) != (config.tls_key is None):
        missing = "tls_key" if config.tls_key is None else "tls_certificate"
        raise UsageError(f"{missing} is missing: TLS needs the certificate and its key")
    least_of = {"body": 1024, "depth": 4, "queue": 0, "choices": 1, "responses": 1}
    least_of |= {"images": 1, "image_pixels": 1, "image_urls": 1}
    for name, least in least_of.items():
        if getattr(config.limits, name) < least:
            raise UsageError(f"limits.{name} is {getattr(config.limits, name)}: must be {least} or more")
    for name in ("body_seconds", "keep_alive", "image_seconds", "responses_days"):
        if not getattr(config.limits, name) > 0:
            raise UsageError(f"limits.{name} is {getattr(config.limits, name)}: must be above 0")
    if config.parallel < 1:
        raise UsageError(f"parallel is {config.parallel}: must be 1 or more")


def _absolute(value: Any, names: tuple[str, ...], folder: Path | None) -> dict[str, Any]:
    given = {name: getattr(value, name) for name in names}
    base = folder or Path()
    files = {name: path for name, path in given.items() if path is not None and (name, path) != ("responses", OFF)}
    return {name: str(base / Path(path).expanduser()) for name, path in files.items()}


# Typed reading -------------------------------------------------------------------------------------------------------
def _table(kind: type[T], values: Any, path: str, leave: tuple[str, ...] = ()) -> T:
    """An instance of a dataclass from a TOML table, each value of the field's type."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{path.rstrip('.')} is no table: write [{path.rstrip('.')}]")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.name not in leave}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            choices = ", ".join(n for n, f in known.items() if f.default is not MISSING)
            raise UsageError(f"{path}{name} is not a key of the configuration: known here are {choices}")
    return kind(**{name: _value(hints[name], value, path + name) for name, value in values.items()})


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS = {int: "whole numbers", str: "texts"}
_BYTES = ("memory", "kv_memory", "body", "responses_bytes")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GiB, "TiB": 2**40}


def _value(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{path} is {value!r}: must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if not isinstance(value, list) or not all(type(one) is kind for one in value):
            raise UsageError(f"{path} is {value!r}: must be a list of {_LISTS[kind]}")
        return tuple(value)
    if isinstance(value, str) and path.rpartition(".")[2] in _BYTES:
        return byte_count(value, path)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UsageError(f"{path} is {value!r}: must be {_WORDS[hint]}")
    if hint in (int, float) and value < 0:
        raise UsageError(f"{path} is {value!r}: must be 0 or more")
    return value


def byte_count(text: str, path: str) -> int:
    """`24 GiB` -> bytes; a plain number is bytes. Raises UsageError."""
    number, unit = text.strip(), 1
    for suffix, size in _UNITS.items():
        if number.endswith(suffix):
            number, unit = number.removesuffix(suffix).strip(), size
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < 2**60:
        raise UsageError(f"{path} is {text!r}: must be a number, or text like '24 GiB'")
    return int(value * unit)
