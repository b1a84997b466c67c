"""herder models: the published models, their shapes, what their weights take in each format, and what runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herder.cache.plan import sequence_bytes
from herder.cli.command import Argument, Command, Kind, Parsed
from herder.cli.pull import JSON
from herder.cli.shape import Lines, kv_text, parameters_text, shape_lines
from herder.cli.terminal import note, print_json, styled, table
from herder.core.sizes import bytes_text, count_text

if TYPE_CHECKING:
    from herder.weights.catalogue import Published

COLUMNS = ("BF16", "Q8_0", "Q4_0")  # formats of the table; Q4_0 is one that every model's rows can be stored in
KV_TOKENS = (1024, 8192)  # contexts that a model's details give the KV cache for, beside its own

LEGEND = (
    "SHAPE is layers x dimension, PARAMETERS all of them (those of one token); weights in GB",
    "text runs in the native core and on PyTorch (--runtime torch), +images on PyTorch",
    "`herder models NAME` says more about one",
)

NAME = Kind("NAME", str, "must be the name of a published model")


def models(parsed: Parsed) -> int:
    from herder.weights.catalogue import CATALOGUE, published

    if parsed.name is not None:
        model = published(parsed.name)
        if parsed.json:
            print_json(_document(parsed.name, model))
        else:
            for name, value in _lines(parsed.name, model):
                print(f"{styled(name.ljust(12), '1')}  {value}")
    elif parsed.json:
        print_json([_document(name, model) for name, model in CATALOGUE.items()])
    else:
        rows = [_row(name, model) for name, model in CATALOGUE.items()]
        headings = ["NAME", "SHAPE", "PARAMETERS", "CONTEXT", *COLUMNS, "LICENCE", "RUNS"]
        table(headings, rows, right=frozenset({3, 4, 5, 6}))
        for line in LEGEND:
            note(line)
    return 0


def _row(name: str, model: Published) -> list[str]:
    config = model.config
    count = count_text(model.parameters)
    if config.experts is not None:
        count += f" ({count_text(config.active_parameters)})"
    sizes = [_gigabytes(_bytes(model)[form]) for form in COLUMNS]
    runs = "no" if not model.runs else "+images" if config.vision is not None else "text"
    return [name, f"{config.layers}x{config.dim}", count, _context(config.context), *sizes, config.licence, runs]


def _bytes(model: Published) -> dict[str, int | None]:
    """Bytes of the weights by the name of the format."""
    from herder.formats.table import FORMATS
    from herder.weights.catalogue import weight_bytes

    return {form.name: weight_bytes(model.config, form) for form in FORMATS}


def _gigabytes(size: int | None) -> str:
    if size is None:
        return "-"
    value = size / 1e9
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _context(tokens: int) -> str:
    """Contexts are powers of two, or a few of one."""
    return f"{tokens >> 20}M" if tokens >= 1 << 20 else f"{tokens >> 10}k"


def _lines(name: str, model: Published) -> Lines:
    config = model.config
    sizes = [f"{form} {bytes_text(size)}" for form, size in _bytes(model).items() if size is not None]
    lines = [", ".join(sizes[start : start + 6]) for start in range(0, len(sizes), 6)]
    contexts = sorted({*KV_TOKENS, config.context})
    short = _short_names(model)
    return [
        ("name", config.name),
        ("released", model.released),
        ("licence", config.licence),
        ("parameters", parameters_text(config, model.parameters, model.vision_parameters)),
        *shape_lines(config),
        *zip(("weights", "", "", ""), lines, strict=False),
        *((f"kv {_context(tokens)}", kv_text(config, tokens)) for tokens in contexts),
        ("chat", model.chat or "none: a base model, which continues text"),
        ("runs", _runs(model)),
        *([("fetch", f"herder pull {short[0]}")] if short else []),
        *([("note", model.note)] if model.note else []),
    ]


def _runs(model: Published) -> str:
    if not model.runs:
        return "no"
    text = "text: native and torch"
    return text if model.config.vision is None else f"{text}; images: torch (--runtime torch)"


def _short_names(model: Published) -> list[str]:
    """The names that `herder pull` fetches the model's Instruct form by."""
    from herder.weights.registry import MODELS

    if not model.chat:  # published as a base model, in a shape of its own
        return []
    words = set(model.config.name.split())
    return [name for name, entry in MODELS.items() if words <= set(entry.title.replace(",", "").split())]


def _document(name: str, model: Published) -> dict[str, Any]:
    import dataclasses

    config = model.config
    return {
        "name": name,
        "title": config.name,
        "released": model.released,
        "licence": config.licence,
        "parameters": model.parameters,
        "active_parameters": config.active_parameters,
        "vision_parameters": model.vision_parameters,
        "context": config.context,
        "kv_bytes_per_token": config.kv_bytes(1),
        "kv_bytes": sequence_bytes(config, config.context)._asdict(),
        "weight_bytes": _bytes(model),
        "chat_format": model.chat or None,
        "runs": {
            "native": ["text"] if model.runs else [],
            "torch": ["text", *(["images"] if config.vision is not None else [])] if model.runs else [],
        },
        "short_names": _short_names(model),
        "note": model.note,
        "config": dataclasses.asdict(config),
    }


COMMANDS = {
    "models": Command(
        name="models",
        summary="Print the published models, their shapes and sizes, and what runs them",
        run=models,
        arguments=(Argument("name", NAME, "One model of the table, in detail", optional=True),),
        options=(JSON,),
        details="""
        The table needs no network and says nothing about this machine: `herder list` has what is here, `herder show`
        what a file needs. Sizes are computed from the shape; in quantized formats the embedding and the head have 6
        bits at least, norms and routers 32, image encoders 16. A kv line is one sequence's 16-bit KV cache.
        """,
        examples=("herder models", "herder models llama-4-scout", "herder models --json"),
    )
}
