"""herder keys: who may use a server, how much, and what they have used."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from herder.cli.command import COUNT, FILE, TEXT, Argument, Command, Kind, Option, Parsed, choice
from herder.cli.pull import JSON
from herder.cli.terminal import note, print_json, table

if TYPE_CHECKING:
    from herder.serve.keys_store import Key, Period

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_PERIODS: dict[str, Period] = {"": "ever", "day": "day", "month": "month"}
_SHORT = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


# Values --------------------------------------------------------------------------------------------------------------
def _names(text: str) -> frozenset[str]:
    names = frozenset(text.split(","))
    if "" in names:
        raise ValueError
    return names


def _quota(text: str) -> tuple[int, Period]:
    """`500000/day`, `5M/month`, `1G` -> (tokens, period)."""
    number, _, period = text.partition("/")
    factor = _SHORT.get(number[-1:], 1)
    tokens = int(number[:-1] if factor > 1 else number) * factor
    if tokens < 1 or text.endswith("/") or period not in _PERIODS:
        raise ValueError
    return tokens, _PERIODS[period]


def _span(text: str) -> float | None:
    """`90m`, `30d` -> seconds."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    return int(found[1]) * _UNITS[found[2]] if found else None


def _date(text: str) -> float:
    """`2026-12-31`, its beginning in UTC, or a time with a zone -> seconds since the epoch."""
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _expiry(text: str) -> float:
    span = _span(text)
    when = _date(text) if span is None else time.time() + span
    if when <= time.time():
        raise ValueError
    return when


def _since(text: str) -> float:
    span = _span(text)
    return _date(text) if span is None else time.time() - span


_RULE = "must be a time like 90m, 12h, 30d or 4w, or a date like 2026-12-31"
NAMES = Kind("NAME,NAME,...", _names, "must be names of models with commas between them")
QUOTA = Kind("TOKENS[/day|/month]", _quota, "must be tokens, like 500000/day, 5M/month or 1G")
EXPIRY = Kind("TIME", _expiry, f"{_RULE} that is to come")
SINCE = Kind("TIME", _since, _RULE)
KEYS = Option("--keys", FILE, "The database of keys; by default the one in Herder's state folder")
NAME = Argument("name", TEXT, "The key's name, as logs, metrics and the usage report show it")


def default_path() -> Path:
    """Where keys are when nothing else is said."""
    from herder.core import machine

    return machine.state_home() / "keys.sqlite"


# The commands --------------------------------------------------------------------------------------------------------
def create(parsed: Parsed) -> int:
    from herder.serve import keys, keys_store

    path = Path(parsed.keys or default_path())
    models: frozenset[str] | None = parsed.models or (frozenset() if parsed.metrics else None)
    quota: tuple[int | None, Period] = parsed.quota or (None, "ever")
    made = keys.make(
        parsed.name,
        models=models,
        rpm=parsed.rpm,
        tpm=parsed.tpm,
        quota=quota[0],
        period=quota[1],
        administers=parsed.admin,
        observes=parsed.metrics,
        expires=parsed.expires,
    )
    connection = keys_store.connect(path, create=True)
    try:
        keys_store.add(connection, made.key)
    finally:
        connection.close()
    if parsed.json:
        print_json({**_document(made.key), "secret": made.text, "keys": str(path)})
    else:
        print(made.text)
        note(f"this is the only time that the key is shown; `herder serve --keys {path}` asks for it")
    return 0


def list_(parsed: Parsed) -> int:
    from herder.serve import keys_store

    connection = keys_store.connect(parsed.keys or default_path())
    try:
        found = keys_store.every(connection)
    finally:
        connection.close()
    if parsed.json:
        print_json([_document(key) for key in found])
        return 0
    if not found:
        note("there are no keys: `herder keys create NAME` makes one")
        return 0
    rows = [[key.name, key.id, _state(key), *_limits(key), _day(key.created), _day(key.expires)] for key in found]
    headings = ["NAME", "ID", "STATE", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "QUOTA", "CREATED", "EXPIRES"]
    table(headings, rows, right=frozenset({4, 5, 6}))
    return 0


def revoke(parsed: Parsed) -> int:
    from herder.serve import keys_store

    connection = keys_store.connect(parsed.keys or default_path())
    try:
        key = keys_store.revoke(connection, parsed.name)
    finally:
        connection.close()
    note(f"revoked {key.name} ({key.id}): running servers refuse it from the next request on")
    return 0


def usage(parsed: Parsed) -> int:
    from herder.serve import keys_store
    from herder.serve import usage as used

    connection = keys_store.connect(parsed.keys or default_path())
    try:
        rows = used.report(connection, parsed.since or 0.0)
    finally:
        connection.close()
    by = parsed.by.split(",")
    sums: defaultdict[tuple[str, ...], used.Total] = defaultdict(used.Total)
    for row in rows:
        at = datetime.fromtimestamp(row.hour, UTC)
        parts = {"key": row.key, "model": row.model, "day": f"{at:%Y-%m-%d}", "hour": f"{at:%Y-%m-%dT%H:00Z}"}
        sums[tuple(parts[name] for name in by)].add(row.total)
    names = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
    lines = [(where, [getattr(total, name) for name in names]) for where, total in sorted(sums.items())]
    if parsed.json:
        print_json([dict(zip((*by, *names), (*where, *numbers), strict=True)) for where, numbers in lines])
        return 0
    if not lines:
        note("nothing has been used in that time")
        return 0
    headings = [*(name.upper() for name in by), "REQUESTS", "FAILED", "PROMPT", "CACHED", "COMPLETION"]
    table(
        headings,
        [[*where, *(f"{number:,}" for number in numbers)] for where, numbers in lines],
        right=frozenset(range(len(by), len(headings))),
    )
    return 0


# What a key looks like -----------------------------------------------------------------------------------------------
def _document(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "id": key.id,
        "state": _state(key),
        "models": None if key.models is None else sorted(key.models),
        "rpm": key.rpm,
        "tpm": key.tpm,
        "quota": key.quota,
        "period": None if key.quota is None else key.period,
        "admin": key.administers,
        "metrics": key.observes,
        "created": _time(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
    }


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    if not key.usable(time.time()):
        return "expired"
    return "admin" if key.administers else "metrics" if key.observes else "active"


def _limits(key: Key) -> tuple[str, str, str, str]:
    per = "" if key.period == "ever" else f"/{key.period}"
    return (
        "all" if key.models is None else ",".join(sorted(key.models)) or "none",
        "" if key.rpm is None else f"{key.rpm:,}",
        "" if key.tpm is None else f"{key.tpm:,}",
        "" if key.quota is None else f"{key.quota:,}{per}",
    )


def _day(at: float | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


COMMANDS = {
    "keys": Command(
        name="keys",
        summary="Make, list and revoke the API keys of a server, and see what they used",
        run=create,
        details="""
        A server with keys (`herder serve --keys FILE`) answers only who sends one. Of a key itself only a hash is kept.
        Servers that run see changes at once.
        """,
        examples=("herder keys create alice --rpm 60 --quota 5M/month", "herder keys list", "herder keys usage"),
        commands=(
            Command(
                name="keys create",
                summary="Make an API key and print it, once",
                run=create,
                arguments=(NAME,),
                options=(
                    Option("--models", NAMES, "The served models that it may use; all if left out"),
                    Option("--rpm", COUNT, "Requests a minute"),
                    Option("--tpm", COUNT, "Tokens a minute, of prompts and answers"),
                    Option("--quota", QUOTA, "Tokens in all, or in each UTC day or month"),
                    Option("--expires", EXPIRY, "When it ends: in 90m, 12h, 30d, 4w, or on a date"),
                    Option("--admin", None, "It may also fetch and delete models over the API, and read the metrics"),
                    Option("--metrics", None, "It may read the metrics, and use only the models that --models names"),
                    KEYS,
                    JSON,
                ),
                details="""
                The requests of any minute never exceed --rpm. Tokens are counted when an answer ends; what answers
                under way together use beyond --tpm is a debt that the key waits for. A request over a limit or a quota
                gets status 429, and Retry-After where waiting helps.
                """,
                examples=(
                    "herder keys create alice",
                    "herder keys create ci --models smollm2 --rpm 60 --tpm 20000 --expires 30d",
                    "herder keys create prometheus --metrics",
                ),
            ),
            Command(name="keys list", summary="List the keys and their limits", run=list_, options=(KEYS, JSON)),
            Command(
                name="keys revoke",
                summary="End a key, now and for good",
                run=revoke,
                arguments=(NAME,),
                options=(KEYS,),
                details="Its usage stays in the report. The name is free for a new key.",
            ),
            Command(
                name="keys usage",
                summary="Print the requests and tokens of each key and model",
                run=usage,
                options=(
                    Option("--since", SINCE, "From then on, to the hour; from the beginning if left out"),
                    Option(
                        "--by",
                        choice("key,model", "key", "model", "day", "key,day", "hour"),
                        "A line for each",
                        "key,model",
                    ),
                    KEYS,
                    JSON,
                ),
                examples=("herder keys usage --since 30d", "herder keys usage --since 2026-01-01 --by key,day --json"),
            ),
        ),
    )
}
