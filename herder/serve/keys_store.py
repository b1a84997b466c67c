"""The database of API keys: an SQLite file that the command line and running servers share."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from herder.core.errors import StorageError, UsageError
from herder.serve import database
from herder.serve.database import Kind, transaction

Period = Literal["day", "month", "ever"]

_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    models TEXT,               -- served names, a line each; NULL for all
    rpm INTEGER, tpm INTEGER,  -- requests and tokens per minute
    quota INTEGER, period TEXT,
    administers INTEGER NOT NULL, observes INTEGER NOT NULL,
    created REAL NOT NULL, expires REAL, revoked REAL  -- seconds since the epoch
) WITHOUT ROWID;

CREATE UNIQUE INDEX names ON keys (name) WHERE revoked IS NULL;

CREATE TABLE usage (
    hour INTEGER NOT NULL,     -- since the epoch
    key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, failed INTEGER NOT NULL,
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
    PRIMARY KEY (hour, key, model)
) WITHOUT ROWID;

CREATE TABLE spent (           -- tokens in a quota's current and past periods, so that a check reads one row
    key TEXT NOT NULL, period TEXT NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (key, period)
) WITHOUT ROWID
"""

# Not durable: a commit is a write(), not an fsync(), so it survives the process (kill -9) but not always the power.
KEYS = Kind("API keys", 0x48524B31, 2, _SCHEMA, durable=False)  # "HRK1"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; its secret is not. models: served names, None for all. rpm, tpm: requests and tokens per
    minute. quota: tokens per period. administers: whether it may fetch and delete models. observes: whether it may read
    the metrics. created, expires, revoked: seconds since the epoch. None is: without limit."""

    id: str
    name: str
    digest: bytes
    models: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    quota: int | None = None
    period: Period = "ever"
    administers: bool = False
    observes: bool = False
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def usable(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


def connect(path: str | Path, *, create: bool = False) -> sqlite3.Connection:
    """Opens the database, made first if create and it is not there. Raises StorageError."""
    if not create and not Path(path).exists():
        raise StorageError(f"there is no database of API keys at {path}: `herder keys create NAME --keys {path}`")
    return database.connect(path, KEYS)


# Keys ----------------------------------------------------------------------------------------------------------------
_COLUMNS = "id, name, digest, models, rpm, tpm, quota, period, administers, observes, created, expires, revoked"


def add(connection: sqlite3.Connection, key: Key) -> None:
    """Raises UsageError when an unrevoked key has the name."""
    models = None if key.models is None else "\n".join(sorted(key.models))
    row = (
        *(key.id, key.name, key.digest, models, key.rpm, key.tpm, key.quota, key.period),
        *(int(key.administers), int(key.observes), key.created, key.expires, key.revoked),
    )
    try:
        connection.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)
    except sqlite3.IntegrityError:
        message = f"a key named {key.name!r} exists: choose another name, or `herder keys revoke {key.name}` first"
        raise UsageError(message) from None


def find(connection: sqlite3.Connection, id: str) -> Key | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (id,)).fetchone()
    return None if row is None else _key(row)


def every(connection: sqlite3.Connection) -> list[Key]:
    """The oldest first, revoked ones among them."""
    return [_key(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id")]


def revoke(connection: sqlite3.Connection, name: str) -> Key:
    """Raises UsageError when no unrevoked key has the name."""
    with transaction(connection):
        row = connection.execute(f"SELECT {_COLUMNS} FROM keys WHERE name = ? AND revoked IS NULL", (name,)).fetchone()
        if row is None:
            raise UsageError(f"no key that can be revoked is named {name!r}: `herder keys list` shows them")
        connection.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), row[0]))
    return _key(row)


def _key(row: tuple[str, str, bytes, str | None, int, int, int, Period, int, int, float, float, float]) -> Key:
    id, name, digest, models, rpm, tpm, quota, period, administers, observes, *times = row
    allowed = None if models is None else frozenset(models.splitlines())
    return Key(id, name, digest, allowed, rpm, tpm, quota, period, bool(administers), bool(observes), *times)
