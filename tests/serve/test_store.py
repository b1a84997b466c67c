"""The store of responses: what it keeps, for whom, for how long, how much, and through what."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from herder.core.errors import StorageError, UsageError
from herder.serve import store as module
from herder.serve.store import Missing, ResponseStore, Stored


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def response(id: str, previous: str | None = None, owner: str = "", text: str = "hello") -> Stored:
    said = [
        {"type": "message", "id": f"msg_{id}_i0", "role": "user", "content": [{"type": "input_text", "text": text}]}
    ]
    answered = [{"type": "message", "id": f"msg_{id}_0", "role": "assistant", "content": []}]
    return Stored(id, owner, {"id": id, "status": "completed"}, said, answered, previous)


def run(
    path: Path,
    work: Callable[[ResponseStore], Awaitable[None]],
    clock: Callable[[], float] | None = None,
    **bounds: Any,
) -> None:
    async def main() -> None:
        store = ResponseStore(path / "responses.db", now=clock or Clock(), **bounds)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


async def keep(store: ResponseStore, *args: Any, **options: Any) -> None:
    await asyncio.wrap_future(store.keep(response(*args, **options)))


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    async def write(store: ResponseStore) -> None:
        await keep(store, "a", text="Zoë 🐑")
        await keep(store, "b", "a")

    async def read(store: ResponseStore) -> None:
        assert await store.find("a", "") == response("a", text="Zoë 🐑")
        assert await store.find("b", "") == response("b", "a")
        found = [item["id"] for item in await store.history("b", "")]
        assert found == ["msg_a_i0", "msg_a_0", "msg_b_i0", "msg_b_0"]
        assert (await store.item("msg_a_0", ""))["role"] == "assistant"
        assert (await store.totals())[0] == 2

    run(tmp_path, write)
    run(tmp_path, read)


def test_another_key_sees_nothing(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        await keep(store, "a", owner="alice")
        await keep(store, "b", "a", owner="bob")  # says that it continues hers
        for owner in ("bob", "", "ALICE", "%"):
            for reading in (store.find, store.history, store.delete):
                with pytest.raises(Missing):
                    await reading("a", owner)
            with pytest.raises(Missing):
                await store.item("msg_a_0", owner)
        with pytest.raises(Missing, match="a, which its conversation needs"):
            await store.history("b", "bob")
        assert (await store.find("a", "alice")).owner == "alice"

    run(tmp_path, work)


def test_the_newest_item_of_an_id(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        for id in ("a", "b"):
            item = {"type": "message", "id": "msg_same", "from": id}
            await asyncio.wrap_future(store.keep(Stored(id, "", {}, [item], [])))
        assert (await store.item("msg_same", ""))["from"] == "b"

    run(tmp_path, work)


def test_what_is_deleted_is_gone_from_the_disk(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        await keep(store, "a", text="the secret of the shepherd")
        await keep(store, "b", "a")
        await store.delete("a", "")
        with pytest.raises(Missing, match="there is no stored response 'a'"):
            await store.delete("a", "")
        with pytest.raises(Missing):
            await store.item("msg_a_i0", "")
        with pytest.raises(Missing, match="b cannot be continued: a, which its conversation needs, is not stored"):
            await store.history("b", "")
        assert (await store.find("b", "")).previous == "a"
        assert not [file for file in tmp_path.iterdir() if b"shepherd" in file.read_bytes()]
        await store.delete("b", "")
        assert await store.totals() == (0, 0)

    run(tmp_path, work)


def test_conversations_expire_as_a_whole(tmp_path: Path) -> None:
    clock = Clock()

    async def work(store: ResponseStore) -> None:
        await keep(store, "a")
        await keep(store, "rests")
        clock.now += 20 * 86400
        await keep(store, "b", "a")  # the conversation goes on
        clock.now += 20 * 86400
        with pytest.raises(Missing):
            await store.find("rests", "")
        assert len(await store.history("b", "")) == 4
        assert (await store.totals())[0] == 2  # gone from the file, too
        clock.now += 10 * 86400 - module.PURGE / 2
        await keep(store, "c")
        clock.now += module.PURGE / 2
        assert (await store.totals())[0] == 3  # the next look is not due yet, but expired is expired
        with pytest.raises(Missing):
            await store.history("b", "")
        with pytest.raises(Missing):
            await store.item("msg_b_0", "")
        clock.now += module.PURGE
        assert (await store.totals())[0] == 1

    run(tmp_path, work, clock)


def test_the_least_used_goes_first(tmp_path: Path) -> None:
    clock = Clock()

    async def work(store: ResponseStore) -> None:
        for id in ("a", "b", "c"):
            clock.now += 1
            await keep(store, id)
        clock.now += 1
        await keep(store, "a2", "a")
        clock.now += 1
        await keep(store, "d")
        assert (await store.totals())[0] == 3
        for id in ("b", "c"):
            with pytest.raises(Missing):
                await store.find(id, "")
        assert len(await store.history("a2", "")) == 4

    run(tmp_path, work, clock, responses=3)


def test_bytes_are_bounded_on_the_disk_too(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        for number in range(60):
            await keep(store, f"r{number}", text="x" * 20_000)
        count, size = await store.totals()
        assert size <= 200_000 and count == 9
        await store.find("r59", "")
        with pytest.raises(StorageError, match=r"and at most 200000 are stored: send store=false"):
            await keep(store, "big", text="x" * 200_000)
        assert (await store.totals())[0] == count  # nothing made room for what did not fit

    run(tmp_path, work, bytes=200_000)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_000_000


def test_a_conversation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(store: ResponseStore) -> None:
        for number in range(5):
            await keep(store, f"r{number}", f"r{number - 1}" if number else None)
        assert len(await store.history("r3", "")) == 8
        with pytest.raises(UsageError, match="r4 ends a conversation of more than 4 responses"):
            await store.history("r4", "")

    monkeypatch.setattr(module, "MAX_CHAIN", 4)
    run(tmp_path, work)


def test_nothing_is_half_stored(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        await keep(store, "a")
        with pytest.raises(StorageError, match="UNIQUE constraint failed"):
            await keep(store, "a", text="again")
        assert (await store.find("a", "")) == response("a") and (await store.totals())[0] == 1

    run(tmp_path, work)


def test_the_event_loop_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async def work(store: ResponseStore) -> None:
        await store.open()
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # somebody holds the lock for writing
        saving = asyncio.wrap_future(store.keep(response("a")))
        for _ in range(10):
            await asyncio.sleep(0.001)
            assert not saving.done()
        other.execute("ROLLBACK")
        other.close()
        await saving

    run(tmp_path, work)


CHILD = """
import asyncio, sys
from pathlib import Path
from herder.serve.store import ResponseStore
from tests.serve.test_store import keep

async def main():
    store = ResponseStore(Path(sys.argv[1]) / "responses.db")
    number = 0
    while True:
        await keep(store, f"r{number}", f"r{number - 1}" if number % 5 else None)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


def test_a_kill_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 25:
            os.kill(child.pid, signal.SIGKILL)
            break
    kept = max([25, *map(int, child.stdout.read().split())])
    assert child.wait(10) == -signal.SIGKILL

    async def read(store: ResponseStore) -> None:
        for number in range(kept + 1):
            await store.find(f"r{number}", "")
        assert len(await store.history("r24", "")) == 10
        assert (await store.totals())[0] in (kept + 1, kept + 2)

    run(tmp_path, read)
