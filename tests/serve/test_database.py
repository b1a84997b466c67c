"""SQLite files of the server: whose they are, what they are, and which version."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from herder.core.errors import StorageError
from herder.serve.database import Kind, connect, shrink, transaction

KIND = Kind("things", 0x54455354, 1, "CREATE TABLE a (x);\n\nCREATE TABLE b (y)")


def foreign(path: Path) -> Path:
    """A database of somebody else's program."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
        made.commit()
    path.chmod(0o600)
    return path


def test_a_new_file_is_its_owner_s(tmp_path: Path) -> None:
    path = tmp_path / "new" / "things.db"
    database = connect(path, KIND)
    database.execute("INSERT INTO b VALUES (1)")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    database.close()
    again = connect(path, replace(KIND, durable=False))
    assert again.execute("SELECT y FROM b").fetchall() == [(1,)]
    assert again.execute("PRAGMA synchronous").fetchone() == (1,)
    again.close()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (replace(KIND, application=1), "is a database, but not one of things: name another file"),
        (replace(KIND, version=2), "was written by another version of Herder (schema 1, not 2)"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, kind: Kind, words: str) -> None:
    path = tmp_path / "things.db"
    connect(path, KIND).close()
    before = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        connect(path, kind)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not SQLite at all, and long enough to have a header" * 20)
    path.chmod(0o600)
    with pytest.raises(StorageError, match=r"notes.txt is no file of things: file is not a database"):
        connect(path, KIND)
    with pytest.raises(StorageError, match="not one of things"):
        connect(foreign(tmp_path / "other.db"), KIND)


def test_others_must_not_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "things.db"
    connect(path, KIND).close()
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"can be reached by other users \(mode 0640\): `chmod 600 "):
        connect(path, KIND)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be opened: File exists"):
        connect(tmp_path / "file" / "things.db", KIND)


def test_a_transaction_is_whole_or_not_at_all(tmp_path: Path) -> None:
    database = connect(tmp_path / "things.db", KIND)
    with pytest.raises(ZeroDivisionError), transaction(database):
        database.execute("INSERT INTO a VALUES (1)")
        _ = 1 / 0
    assert database.execute("SELECT count(*) FROM a").fetchone() == (0,) and not database.in_transaction
    database.close()


def test_a_file_shrinks(tmp_path: Path) -> None:
    database = connect(tmp_path / "things.db", KIND)
    database.executemany("INSERT INTO a VALUES (?)", [("x" * 4000,)] * 200)
    database.execute("DELETE FROM a")
    shrink(database, 1000)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (tmp_path / "things.db").stat().st_size < 100_000
    database.close()
