"""Usage rows: summed by the hour, never lost by a killed process, kept while the disk fails; quotas and periods."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from herder.serve import keys, keys_store, usage
from herder.serve.gate import Usage
from herder.serve.keys_store import Key
from herder.serve.usage import Entry, Total
from herder.serve.writer import KEEP, Writer


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def used(model: str = "m", status: int = 200, prompt: int = 10, cached: int = 4, completion: int = 5) -> Usage:
    return Usage("id", "/v1/x", model, status, prompt, cached, completion)


def key(path: Path, name: str = "alice", **limits: object) -> Key:
    made = keys.make(name, **limits)  # type: ignore[arg-type]
    connection = keys_store.connect(path, create=True)
    keys_store.add(connection, made.key)
    connection.close()
    return made.key


def test_rows_are_sums_by_hour_key_and_model(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    alice, bob = key(path), key(path, "bob")
    connection = keys_store.connect(path)
    first, second = at("2026-01-31T10:59:59"), at("2026-01-31T11:00:00")
    usage.write(connection, [Entry(first, alice, used()), Entry(first, alice, used(status=500, completion=0))])
    usage.write(connection, [Entry(first, alice, used()), Entry(second, alice, used("n")), Entry(second, bob, used())])
    ten, eleven = int(at("2026-01-31T10:00")), int(at("2026-01-31T11:00"))
    assert usage.report(connection) == [
        (ten, "alice", "m", Total(3, 1, 30, 12, 10)),
        (eleven, "alice", "n", Total(1, 0, 10, 4, 5)),
        (eleven, "bob", "m", Total(1, 0, 10, 4, 5)),
    ]
    assert [row.hour for row in usage.report(connection, since=second + 5)] == [eleven, eleven]
    connection.close()


def test_a_name_that_came_again_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = key(path)
    connection = keys_store.connect(path)
    keys_store.revoke(connection, "alice")
    second = key(path)
    usage.write(connection, [Entry(0.0, first, used()), Entry(0.0, second, used())])
    assert usage.report(connection) == [(0, "alice", "m", Total(2, 0, 20, 8, 10))]
    connection.close()


@pytest.mark.parametrize(
    ("period", "name", "left"),
    [("day", "2026-12-31", 0.5), ("month", "2026-12", 0.5), ("ever", "ever", None)],
)
def test_quotas_count_in_their_period(tmp_path: Path, period: str, name: str, left: float | None) -> None:
    path, end = tmp_path / "keys", at("2026-12-31T23:59:59.5")
    alice = key(path, quota=100, period=period)
    connection = keys_store.connect(path)
    usage.write(connection, [Entry(end, alice, used()), Entry(end, alice, used())])
    assert usage.period_name(alice.period, end) == name
    assert usage.period_left(alice.period, end) == left
    assert usage.spent(connection, alice, end) == 30
    assert usage.spent(connection, alice, end + 0.5) == (30 if period == "ever" else 0)
    connection.close()


def test_months_have_their_own_lengths() -> None:
    assert usage.period_left("month", at("2028-02-01")) == 29 * 86400
    assert usage.period_left("month", at("2026-01-31")) == 86400
    assert usage.period_left("day", at("2026-03-29T06:00")) == 18 * 3600


# The writer ----------------------------------------------------------------------------------------------------------
def test_what_is_awaited_has_been_written() -> None:
    written: list[list[int]] = []

    async def main() -> None:
        writer: Writer[int] = Writer(written.append, "test")
        for number in range(3):
            await writer.put(number)
            assert written[-1] == [number]
        await asyncio.gather(*(writer.put(number) for number in range(3, 100)))
        writer.put(100)  # not awaited
        await asyncio.to_thread(writer.close)
        with pytest.raises(AssertionError, match="closed"):
            writer.put(101)

    asyncio.run(main())
    assert [one for group in written for one in group] == list(range(101))
    assert len(written) < 50  # what came together was written together


def test_who_is_cancelled_has_handed_its_item_over() -> None:
    written: list[int] = []

    async def main() -> None:
        writer: Writer[int] = Writer(written.extend, "test")

        async def record() -> None:
            await writer.put(1)

        task = asyncio.create_task(record())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(writer.close)

    asyncio.run(main())
    assert written == [1]


def test_a_full_disk_delays_rows_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    written: list[int] = []
    full = True

    def write(items: list[int]) -> None:
        if full:
            raise OSError("no space left on device")
        written.extend(items)

    async def main() -> None:
        nonlocal full
        writer = Writer(write, "usage rows")
        for number in range(3):
            await writer.put(number)
        assert not written
        full = False
        await writer.put(3)
        assert written == [0, 1, 2, 3]
        full = True
        for number in range(4, KEEP + 6):
            future = writer.put(number)
        await future
        full = False
        await asyncio.to_thread(writer.close)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert len(written) == 4 + KEEP and written[-1] == KEEP + 5
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "usage rows: 1 items not written: no space left on device; they are kept and tried again"
    assert any("the oldest" in line and "are lost" in line for line in said[1:])


WORKER = """
import asyncio, os, sys
from herder.serve.gate import Usage
from herder.serve.key_gate import Holder, KeyGate
async def main():
    gate = KeyGate(sys.argv[1])
    from herder.serve import keys_store
    key = keys_store.every(keys_store.connect(sys.argv[1]))[0]
    async def request(number):
        while True:
            who = Holder(key.name, owned=key)
            assert await gate.admit(who, "m") is None
            await gate.record(who, Usage("id", "/", "m", 200, 1, 0, 1))
            os.write(1, b".")  # the end of the answer
    await asyncio.gather(*(request(n) for n in range(16)))
asyncio.run(main())
"""


def test_kill_9_loses_no_finished_request(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key(path, quota=10**9)
    finished = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            seen = worker.stdout.read(500)  # in full flight
            worker.send_signal(signal.SIGKILL)
            seen += worker.stdout.read()
        assert worker.returncode == -signal.SIGKILL and len(seen) >= 500
        finished += len(seen)
    connection = keys_store.connect(path)
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    recorded = sum(row.total.requests for row in usage.report(connection))
    spent = connection.execute("SELECT sum(tokens) FROM spent").fetchone()[0]
    connection.close()
    assert integrity == "ok"
    assert finished <= recorded <= finished + 3 * 16  # those 16 had been recorded, but not yet seen to end
    assert spent == 2 * recorded
