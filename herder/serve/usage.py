"""What each API key has used: a row per hour, key and model, committed before the answer ends; quotas; the report."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from herder.serve.database import transaction
from herder.serve.keys_store import Key, Period

if TYPE_CHECKING:
    from herder.serve.gate import Usage

HOUR = 3600


class Entry(NamedTuple):
    """What one request adds. at: seconds since the epoch."""

    at: float
    key: Key
    usage: Usage


@dataclass(slots=True)
class Total:
    """Sums over requests. failed: those whose status was 400 or above. cached: of the prompt tokens, those whose keys
    and values were still there."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What limits and quotas count: cached tokens too, so that a client can foresee it."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: Total) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Row(NamedTuple):
    """One row of the report. hour: its first second, since the epoch. key: the name."""

    hour: int
    key: str
    model: str
    total: Total


def total_of(usage: Usage) -> Total:
    return Total(1, int(usage.status >= 400), usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def write(connection: sqlite3.Connection, entries: list[Entry]) -> None:
    """Adds requests in one transaction. Raises OSError, or nothing is changed."""
    hours: defaultdict[tuple[int, str, str], Total] = defaultdict(Total)
    spent: Counter[tuple[str, str]] = Counter()
    for at, key, usage in entries:
        total = total_of(usage)
        hours[int(at // HOUR), key.id, usage.model].add(total)
        if key.quota is not None:
            spent[key.id, period_name(key.period, at)] += total.tokens
    try:
        with transaction(connection):
            connection.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hour, key, model) DO UPDATE SET "
                "requests = requests + excluded.requests, failed = failed + excluded.failed, "
                "prompt = prompt + excluded.prompt, cached = cached + excluded.cached, "
                "completion = completion + excluded.completion",
                [
                    (*at, t.requests, t.failed, t.prompt_tokens, t.cached_tokens, t.completion_tokens)
                    for at, t in hours.items()
                ],
            )
            connection.executemany(
                "INSERT INTO spent VALUES (?, ?, ?) "
                "ON CONFLICT (key, period) DO UPDATE SET tokens = tokens + excluded.tokens",
                [(*at, tokens) for at, tokens in spent.items()],
            )
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def spent(connection: sqlite3.Connection, key: Key, at: float) -> int:
    """Tokens that count against the key's quota now."""
    row = connection.execute(
        "SELECT tokens FROM spent WHERE key = ? AND period = ?", (key.id, period_name(key.period, at))
    ).fetchone()
    return 0 if row is None else int(row[0])


def report(connection: sqlite3.Connection, since: float = 0.0) -> list[Row]:
    """From the hour of `since` (seconds since the epoch) on, by time, key and model; names that came again together."""
    rows: dict[tuple[int, str, str], Total] = {}
    for hour, name, model, *numbers in connection.execute(
        "SELECT hour, coalesce(name, usage.key), model, requests, failed, prompt, cached, completion "
        "FROM usage LEFT JOIN keys ON keys.id = usage.key WHERE hour >= ? ORDER BY hour, 2, model",
        (int(since // HOUR),),
    ):
        rows.setdefault((hour * HOUR, name, model), Total()).add(Total(*numbers))
    return [Row(*at, total) for at, total in rows.items()]


# Periods of quotas, in UTC -------------------------------------------------------------------------------------------
def period_name(period: Period, at: float) -> str:
    """ "ever", "2026-01" or "2026-01-31"."""
    if period == "ever":
        return "ever"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m" if period == "month" else "%Y-%m-%d")


def period_left(period: Period, at: float) -> float | None:
    """Seconds until the next period begins; None: it never does."""
    if period == "ever":
        return None
    now = datetime.fromtimestamp(at, UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    following = today + timedelta(days=1)
    if period == "month":
        following = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (following - now).total_seconds()
