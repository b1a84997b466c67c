"""API keys: how a secret is made, what is stored of it, and how one that is shown is checked."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import time
from typing import NamedTuple

from herder.core.errors import UsageError
from herder.serve import keys_store
from herder.serve.keys_store import Key, Period

PREFIX = "herder"
ID_LENGTH = 10
SECRET_LENGTH = 43  # base62 digits of 32 random bytes
MAX_KEY = 256  # characters that are looked at
MAX_NAME = 64
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Made(NamedTuple):
    """A new key, and what its owner sends: `herder_<id>_<secret>`. Nothing keeps the latter."""

    key: Key
    text: str


def make(
    name: str,
    *,
    models: frozenset[str] | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    quota: int | None = None,
    period: Period = "ever",
    administers: bool = False,
    observes: bool = False,
    expires: float | None = None,
) -> Made:
    """A key with a fresh secret. Raises UsageError for a name that a label of metrics and logs could not be."""
    if not 0 < len(name) <= MAX_NAME or not all(c.isalnum() or c in "-_.@" for c in name):
        raise UsageError(f"the name {name!r} is not letters, digits and -_.@, at most {MAX_NAME}: choose another")
    id, secret = _random(ID_LENGTH), _random(SECRET_LENGTH)
    key = Key(
        *(id, name, digest(secret), models, rpm, tpm, quota, period, administers, observes),
        created=time.time(),
        expires=expires,
    )
    return Made(key, f"{PREFIX}_{id}_{secret}")


def digest(secret: str) -> bytes:
    """What is stored. A plain SHA-256: slow hashes and salts are for secrets that people choose; 256 random bits cannot
    be guessed at any speed, and a pepper beside the digests would be read together with them."""
    return hashlib.sha256(secret.encode()).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_DIGITS) for _ in range(length))


def known(connection: sqlite3.Connection, text: str, now: float) -> Key | None:
    """The key whose secret text has, if it may still be used. Raises sqlite3.Error."""
    prefix, _, rest = text[:MAX_KEY].partition("_")
    id, _, secret = rest.partition("_")
    key = keys_store.find(connection, id) if prefix == PREFIX else None
    # Compared whether there is such a key or not: the time says nothing about either.
    same = hmac.compare_digest(digest(secret), key.digest if key is not None else bytes(32))
    return key if same and key is not None and key.usable(now) else None
