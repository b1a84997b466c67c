"""SQLite files for their owner only, checked to be ours, written so that a killed process loses nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from herder.core.errors import StorageError


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is to be. name: as errors call it ("stored responses"). application: in the file's header, so that
    another program's database is never taken for ours. version: of the schema, whose statements are parted by ";" and
    an empty line. durable: a commit waits for the disk (fsync), so that it survives a loss of power, too."""

    name: str
    application: int
    version: int
    schema: str
    durable: bool = True


def connect(path: str | Path, kind: Kind) -> sqlite3.Connection:
    """Opens the file, made first where there is none (mode 0600). One thread at a time uses a connection; transactions
    are written down where they are (see transaction()). Raises StorageError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives -wal and -shm the same mode
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise StorageError(f"the file of {kind.name} {path} cannot be opened: {error.strerror}") from None
    if mode & 0o077 and os.name == "posix":
        raise StorageError(f"{path} can be reached by other users (mode {mode:04o}): `chmod 600 {path}`")
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")  # one moment's view of a file that somebody else may just be making
        made = _is_made(connection, path, kind)  # before anything is written: the file may be another program's
        connection.execute("COMMIT")
        if not made:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has a meaning before the first table only
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if kind.durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # what was deleted is overwritten
        connection.execute(f"PRAGMA journal_size_limit={2**24}")
        if not made:
            _make(connection, path, kind)
    except sqlite3.Error as error:
        connection.close()
        raise StorageError(f"{path} is no file of {kind.name}: {error}") from None
    except StorageError:
        connection.close()
        raise
    return connection


def _is_made(connection: sqlite3.Connection, path: Path, kind: Kind) -> bool:
    """False for a new file. Raises StorageError for one that is not of this kind and version."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if version == 0 and application == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        return False
    if application != kind.application:
        raise StorageError(f"{path} is a database, but not one of {kind.name}: name another file")
    if version != kind.version:
        versions = f"schema {version}, not {kind.version}"
        raise StorageError(f"{path} was written by another version of Herder ({versions}): name another file")
    return True


def _make(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    with transaction(connection):
        if _is_made(connection, path, kind):  # by another process, just now
            return
        for statement in kind.schema.split(";\n\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {kind.application}")
        connection.execute(f"PRAGMA user_version = {kind.version}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Takes the write lock first, so that what is read inside stays true until the commit."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def shrink(connection: sqlite3.Connection, pages: int) -> None:
    """Gives up to so many unused pages back to the file system; outside a transaction. (execute() would take the one
    step that gives back one page; a script is run to its end.)"""
    connection.executescript(f"PRAGMA incremental_vacuum({pages})")
