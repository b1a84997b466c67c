"""Stored responses: in SQLite, by id and by owner, bounded, expiring; a kill -9 loses none that was kept."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from herder.core import machine
from herder.core.errors import StorageError, UsageError
from herder.serve.config import OFF, Config
from herder.serve.database import Kind, connect, shrink, transaction

MAX_CHAIN = 4096  # responses of one conversation that are read back
MAX_HISTORY = 64 * 2**20  # bytes of items that are read back
PURGE = 60.0  # seconds between two looks for what has expired

_KIND = Kind(
    "stored responses",
    0x48524453,  # "HRDS"
    1,
    """
CREATE TABLE conversations (   -- responses that continue each other live and expire together
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,       -- the name of an API key, '' without keys
    used REAL NOT NULL, expires REAL NOT NULL  -- seconds since the epoch
);

CREATE INDEX used ON conversations (used);

CREATE INDEX expires ON conversations (expires);

CREATE TABLE responses (
    number INTEGER PRIMARY KEY, -- in the order they came
    id TEXT NOT NULL UNIQUE,
    conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
    previous TEXT,
    bytes INTEGER NOT NULL,
    body TEXT NOT NULL         -- JSON, without the output
);

CREATE INDEX members ON responses (conversation, number);

CREATE TABLE items (
    response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE,
    position INTEGER NOT NULL, -- the input's first, then the output's
    output INTEGER NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,        -- JSON
    PRIMARY KEY (response, position)
) WITHOUT ROWID;

CREATE INDEX references_ ON items (id);

CREATE TABLE totals (responses INTEGER NOT NULL, bytes INTEGER NOT NULL);

INSERT INTO totals VALUES (0, 0);

CREATE TRIGGER added AFTER INSERT ON responses BEGIN
    UPDATE totals SET responses = responses + 1, bytes = bytes + NEW.bytes; END;

CREATE TRIGGER removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET responses = responses - 1, bytes = bytes - OLD.bytes; END
""",
)

Item = Mapping[str, Any]
T = TypeVar("T")


class Missing(UsageError):
    """No such response or item: never stored, deleted, expired, or somebody else's. id: which."""

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True, slots=True)
class Stored:
    """body: the response as JSON, without its output. input, output: its items, each a JSON object with an `id`.
    owner: the name of an API key, "" without keys. previous: the id of the response that it continues."""

    id: str
    owner: str
    body: Mapping[str, Any]
    input: Sequence[Item]
    output: Sequence[Item]
    previous: str | None = None


def store_path(config: Config) -> Path | None:
    """`responses` of the configuration, else a file in Herder's state folder; None where nothing is stored."""
    if config.responses == OFF:
        return None
    return Path(config.responses or machine.state_home() / "responses.sqlite3")


def check_store(path: str | Path) -> None:
    """Raises StorageError for what opening the file would refuse; makes none."""
    path = Path(path)
    if path.exists():
        connect(path, _KIND).close()
        return
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"the file of {_KIND.name} {path} cannot be made: {folder} is no folder to write to")


class ResponseStore:
    """One file, and a thread that alone touches it, so that the event loop never waits for a disk.

    days: a conversation expires so long after its last response. responses, bytes: the most that is kept; what was not
    used for longest goes first. now: the clock. Every method raises StorageError for what the disk refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        days: float = 30.0,
        responses: int = 100_000,
        bytes: int = 4 * 2**30,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self._seconds, self._responses, self._bytes, self._now = days * 86400, responses, bytes, now
        self._purged = float("-inf")
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")

    async def open(self) -> None:
        """Opens the file now instead of at the first use."""
        await self._call(lambda database: None)

    def keep(self, stored: Stored) -> Future[None]:
        """Stores a response; the future is done when it cannot be lost any more."""
        return self._thread.submit(self._guarded, lambda database: self._insert(database, stored))

    async def find(self, id: str, owner: str) -> Stored:
        """Raises Missing."""
        return await self._call(lambda database: self._find(database, id, owner))

    async def history(self, id: str, owner: str) -> list[Item]:
        """All items of a response and of those that it continues, oldest first. Raises Missing when one of them is not
        there any more: half a conversation would be another one; and UsageError when it is too long."""
        return await self._call(lambda database: self._history(database, id, owner))

    async def item(self, id: str, owner: str) -> Item:
        """The newest item with this id. Raises Missing."""
        return await self._call(lambda database: self._item(database, id, owner))

    async def delete(self, id: str, owner: str) -> None:
        """Raises Missing."""
        await self._call(lambda database: self._delete(database, id, owner))

    async def totals(self) -> tuple[int, int]:
        """Responses and bytes that are kept."""

        def totals(database: sqlite3.Connection) -> tuple[int, int]:
            responses, size = database.execute("SELECT responses, bytes FROM totals").fetchone()
            return responses, size

        return await self._call(totals)

    async def close(self) -> None:
        """After everything that was to be kept is."""

        def close() -> None:
            if self._database is not None:
                self._database.close()
                self._database = None

        await asyncio.wrap_future(self._thread.submit(close))
        self._thread.shutdown(wait=False)

    # On the thread ---------------------------------------------------------------------------------------------------
    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(self._guarded, work))

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._database is None:
            self._database = connect(self.path, _KIND)
        try:
            self._purge(self._database)
            return work(self._database)
        except sqlite3.Error as error:
            raise StorageError(f"the file of stored responses cannot be used: {error}") from None

    def _insert(self, database: sqlite3.Connection, stored: Stored) -> None:
        now = self._now()
        items = [(0, one["id"], _dumps(one)) for one in stored.input]
        items += [(1, one["id"], _dumps(one)) for one in stored.output]
        body = _dumps(stored.body)
        size = len(body.encode()) + sum(len(text.encode()) for _, _, text in items)
        if size > self._bytes:
            raise StorageError(
                f"the response has {size} bytes and at most {self._bytes} are stored: send store=false to go without"
            )
        with transaction(database):
            conversation = self._conversation(database, stored, now)
            number = database.execute(
                "INSERT INTO responses (id, conversation, previous, bytes, body) VALUES (?, ?, ?, ?, ?)",
                (stored.id, conversation, stored.previous, size, body),
            ).lastrowid
            database.executemany(
                "INSERT INTO items (response, position, output, id, body) VALUES (?, ?, ?, ?, ?)",
                [(number, position, *item) for position, item in enumerate(items)],
            )
            self._make_room(database)
        shrink(database, 256)

    def _conversation(self, database: sqlite3.Connection, stored: Stored, now: float) -> int:
        """The conversation that a new response belongs to, used just now."""
        times = (now, now + self._seconds)
        row = database.execute(
            "SELECT c.id FROM responses r JOIN conversations c ON c.id = r.conversation WHERE r.id = ? AND c.owner = ?",
            (stored.previous, stored.owner),
        ).fetchone()
        if row is not None:
            database.execute("UPDATE conversations SET used = ?, expires = ? WHERE id = ?", (*times, row[0]))
            return int(row[0])
        made = database.execute(
            "INSERT INTO conversations (owner, used, expires) VALUES (?, ?, ?)", (stored.owner, *times)
        )
        assert made.lastrowid is not None
        return made.lastrowid

    def _purge(self, database: sqlite3.Connection) -> None:
        now = self._now()
        if now - self._purged >= PURGE:
            self._purged = now
            if database.execute("DELETE FROM conversations WHERE expires <= ?", (now,)).rowcount:
                shrink(database, 4096)

    def _make_room(self, database: sqlite3.Connection) -> None:
        while True:
            responses, size = database.execute("SELECT responses, bytes FROM totals").fetchone()
            if responses <= self._responses and size <= self._bytes:
                return
            oldest = database.execute("SELECT id FROM conversations ORDER BY used, id LIMIT 1").fetchone()[0]
            first = "SELECT number FROM responses WHERE conversation = ? ORDER BY number LIMIT 1"
            self._remove(database, database.execute(first, (oldest,)).fetchone()[0], oldest)

    def _remove(self, database: sqlite3.Connection, number: int, conversation: int) -> None:
        database.execute("DELETE FROM responses WHERE number = ?", (number,))
        database.execute(
            "DELETE FROM conversations WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM responses WHERE conversation = ?1)",
            (conversation,),
        )

    def _row(self, database: sqlite3.Connection, id: str, owner: str) -> tuple[int, int, str | None, int, str]:
        row: tuple[int, int, str | None, int, str] | None = database.execute(
            "SELECT r.number, r.conversation, r.previous, r.bytes, r.body FROM responses r JOIN conversations c "
            "ON c.id = r.conversation WHERE r.id = ? AND c.owner = ? AND c.expires > ?",
            (id, owner, self._now()),
        ).fetchone()
        if row is None:
            raise Missing(f"there is no stored response {id[:80]!a}", id)
        return row

    def _find(self, database: sqlite3.Connection, id: str, owner: str) -> Stored:
        number, _, previous, _, body = self._row(database, id, owner)
        items: tuple[list[Item], list[Item]] = ([], [])
        for output, text in _items(database, number):
            items[output].append(json.loads(text))
        return Stored(id, owner, json.loads(body), *items, previous)

    def _history(self, database: sqlite3.Connection, id: str, owner: str) -> list[Item]:
        numbers: list[int] = []
        size = 0
        next_: str | None = id
        while next_ is not None:
            try:
                number, _, previous, bytes_, _ = self._row(database, next_, owner)
            except Missing:
                if not numbers:
                    raise
                raise Missing(
                    f"{id} cannot be continued: {next_}, which its conversation needs, is not stored any more", id
                ) from None
            numbers.append(number)
            size += bytes_
            if len(numbers) > MAX_CHAIN or size > MAX_HISTORY:
                raise UsageError(
                    f"{id} ends a conversation of more than {MAX_CHAIN} responses or {MAX_HISTORY} bytes: begin a new "
                    "one"
                )
            next_ = previous
        return [json.loads(text) for number in reversed(numbers) for _, text in _items(database, number)]

    def _item(self, database: sqlite3.Connection, id: str, owner: str) -> Item:
        row = database.execute(
            "SELECT i.body FROM items i JOIN responses r ON r.number = i.response JOIN conversations c "
            "ON c.id = r.conversation WHERE i.id = ? AND c.owner = ? AND c.expires > ? ORDER BY r.number DESC LIMIT 1",
            (id, owner, self._now()),
        ).fetchone()
        if row is None:
            raise Missing(f"there is no stored item {id[:80]!a}", id)
        found: Item = json.loads(row[0])
        return found

    def _delete(self, database: sqlite3.Connection, id: str, owner: str) -> None:
        with transaction(database):
            number, conversation, *_ = self._row(database, id, owner)
            self._remove(database, number, conversation)
        # Deleted means gone: from the write-ahead log, too.
        shrink(database, 256)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _items(database: sqlite3.Connection, number: int) -> list[tuple[int, str]]:
    return database.execute("SELECT output, body FROM items WHERE response = ? ORDER BY position", (number,)).fetchall()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
