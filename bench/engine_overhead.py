"""What a decode step costs in Python: plan, chunks, apply and events, with an executor that does nothing.

    python bench/engine_overhead.py

Prints microseconds of CPU time per step: the loop alone with 1, 8 and 32 sequences, and with a Stream that is read in
the caller's thread.
"""

from __future__ import annotations

import platform
import time
from array import array

from herder.core.batch import Batch, Limits, Output
from herder.core.request import Event, Request
from herder.engine.engine import Engine
from herder.engine.loop import Loop

LIMITS = Limits(pages=4096, context=8192, batch_tokens=512, batch_chunks=64, vocab=49152)
STEPS = 3000


class NullExecutor:
    """Answers every chunk with token 7."""

    limits = LIMITS

    def launch(self, batch: Batch) -> Batch:
        return batch

    def result(self, ticket: Batch) -> list[Output]:
        return [Output(chunk.seq, (7,) * chunk.outputs) for chunk in ticket.chunks]

    def close(self) -> None:
        pass


def loop_microseconds(sequences: int) -> float:
    loop = Loop(NullExecutor())
    events: list[Event] = []
    for index in range(sequences):
        loop.add(Request(tuple(array("i", range(index, index + 100))), max_tokens=STEPS + 100), events.append, 0)
    for _ in range(20):
        loop.step()
    started = time.process_time()
    for _ in range(STEPS):
        loop.step()
    return (time.process_time() - started) / STEPS * 1e6


def engine_microseconds() -> float:
    with Engine(NullExecutor()) as engine:
        engine.submit(Request((1, 2, 3), max_tokens=10)).result()
        started = time.process_time()
        for _ in engine.submit(Request((1, 2, 3), max_tokens=STEPS)):
            pass
        return (time.process_time() - started) / STEPS * 1e6


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for sequences in (1, 8, 32):
        print(f"{sequences:3} sequences: {loop_microseconds(sequences):6.1f} us a step")
    print(f"  1 sequence, read through a Stream: {engine_microseconds():6.1f} us a token")


if __name__ == "__main__":
    main()
