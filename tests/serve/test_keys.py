"""Secrets, and the database that the command line and servers share."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.core.errors import StorageError, UsageError
from herder.serve import keys, keys_store
from herder.serve.keys_store import Key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.sqlite"


def new(path: Path, name: str = "alice", **limits: object) -> keys.Made:
    made = keys.make(name, **limits)  # type: ignore[arg-type]
    connection = keys_store.connect(path, create=True)
    keys_store.add(connection, made.key)
    connection.close()
    return made


# Secrets -------------------------------------------------------------------------------------------------------------
def test_a_key_is_found_by_its_text_alone(path: Path) -> None:
    made, other = new(path), new(path, "bob")
    connection = keys_store.connect(path)
    assert re.fullmatch(r"herder_[0-9A-Za-z]{10}_[0-9A-Za-z]{43}", made.text)
    assert keys.known(connection, made.text, 0.0) == made.key
    assert keys.known(connection, other.text, 0.0) == other.key
    head, secret = made.text[:-43], made.text[-43:]
    for wrong in (
        "", "herder", "herder__", made.text[:-1], made.text + "x", head, head + secret.swapcase(),
        head + other.text[-43:], "sk-" + made.text, made.text.upper(), made.text * 20, "herder_\0_\0",
    ):  # fmt: skip
        assert keys.known(connection, wrong, 0.0) is None, wrong
    connection.close()


@given(st.text(max_size=400))
def test_no_other_text_is_a_key(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    for statement in keys_store.KEYS.schema.split(";\n\n"):
        connection.execute(statement)
    made = keys.make("alice")
    keys_store.add(connection, made.key)
    assert keys.known(connection, text, 0.0) is None
    assert keys.known(connection, f"herder_{made.key.id}_{text}", 0.0) is None
    assert keys.known(connection, made.text, 0.0) == made.key


def test_the_file_does_not_hold_the_secret(path: Path) -> None:
    made = new(path)
    data = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert made.key.id.encode() in data and made.key.digest in data
    assert made.text.encode() not in data and made.text[-43:].encode() not in data


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\n", 'a"', "a/b", "{}"])
def test_names_that_labels_could_not_be_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose another"):
        keys.make(name)


# The database --------------------------------------------------------------------------------------------------------
def test_everything_about_a_key_is_kept(path: Path) -> None:
    made = new(
        path,
        models=frozenset({"a", "b:c"}),
        rpm=1,
        tpm=2,
        quota=3,
        period="month",
        administers=True,
        observes=True,
        expires=5.5,
    )
    connection = keys_store.connect(path)
    assert keys_store.every(connection) == [made.key]
    assert made.key.models == {"a", "b:c"} and made.key.administers and made.key.observes and made.key.period == "month"
    connection.close()


def test_a_key_that_expired_or_was_revoked_is_not_known(path: Path) -> None:
    made = new(path, expires=100.0)
    connection = keys_store.connect(path)
    assert keys.known(connection, made.text, 99.9) is not None
    assert keys.known(connection, made.text, 100.0) is None
    keys_store.revoke(connection, "alice")
    assert keys.known(connection, made.text, 0.0) is None
    with pytest.raises(UsageError, match="no key that can be revoked is named 'alice'"):
        keys_store.revoke(connection, "alice")
    connection.close()


def test_a_name_is_one_keys_until_it_is_revoked(path: Path) -> None:
    new(path)
    with pytest.raises(UsageError, match="a key named 'alice' exists"):
        new(path)
    connection = keys_store.connect(path)
    keys_store.revoke(connection, "alice")
    again = new(path)
    assert [key.revoked is None for key in keys_store.every(connection)] == [False, True]
    assert keys.known(connection, again.text, 0.0) == again.key  # made while the connection was open
    connection.close()


def test_the_file_is_its_owners(path: Path) -> None:
    old = os.umask(0)
    try:
        new(path)
        connection = keys_store.connect(path)
        connection.execute("UPDATE keys SET rpm = 1")
        files = sorted(path.parent.iterdir())
        assert {file.name for file in files} == {"keys.sqlite", "keys.sqlite-shm", "keys.sqlite-wal"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        connection.close()
    finally:
        os.umask(old)
    path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        keys_store.connect(path)


def test_a_file_that_is_not_one_of_keys(path: Path) -> None:
    with pytest.raises(StorageError, match="`herder keys create NAME --keys"):
        keys_store.connect(path)
    path.write_bytes(b"something else entirely, more than a header" * 100)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="is no file of API keys"):
        keys_store.connect(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    path.chmod(0o600)
    with pytest.raises(StorageError, match="not one of API keys"):
        keys_store.connect(path)


def test_a_later_schema_is_refused(path: Path) -> None:
    new(path)
    connection = keys_store.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="another version of Herder"):
        keys_store.connect(path)


def test_many_make_keys_in_a_new_file_at_once(path: Path) -> None:
    failures: list[BaseException] = []

    def make(number: int) -> None:
        try:
            new(path, f"key{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection = keys_store.connect(path)
    found: list[Key] = keys_store.every(connection)
    connection.close()
    assert not failures and sorted(key.name for key in found) == [f"key{number}" for number in range(8)]
