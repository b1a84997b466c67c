"""Five minutes of 64 clients with mixed lengths, a third of whom leave: nothing may leak, nobody may wait for ever.

    python -m bench.soak [--minutes 5] [--clients 64] [--herder FILE]

The server is a process of its own. Afterwards its pages, running requests and memory must be what they were before; a
request that nobody cancelled must have ended. Exits with 1 and says what is wrong otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Answer, ask, percentile
from bench.models import ROOT
from bench.serve import free_port, question, serving

PATIENCE = 300.0  # seconds after which a request counts as stuck
GROWTH = 1.05  # resident memory at the end over that at half time, when every page of the KV store has been touched


@dataclass(slots=True)
class Tally:
    answers: list[Answer] = field(default_factory=list)
    cancelled: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def body(random_: random.Random) -> dict[str, Any]:
    text = question(random_.randrange(50), random_.choice((20, 60, 200, 700)))
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": random_.choice((4, 16, 64, 160)),
        "temperature": random_.choice((0.0, 0.8)),
    }


async def client(url: str, number: int, end: float, tally: Tally) -> None:
    random_ = random.Random(number)
    while time.monotonic() < end:
        asking = asyncio.create_task(ask(url, body(random_)))
        leaves = random_.random() < 1 / 3
        try:
            answer = await asyncio.wait_for(asking, random_.uniform(0.01, 6.0) if leaves else PATIENCE)
            tally.answers.append(answer)
        except TimeoutError:
            if leaves:
                tally.cancelled += 1
            else:
                tally.problems.append(f"a request had no answer after {PATIENCE:.0f} s")
        except (RuntimeError, OSError) as error:
            if " 429 " in str(error):
                tally.refused += 1
                await asyncio.sleep(0.5)
            else:
                tally.problems.append(str(error).splitlines()[0])


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def resident(pid: int) -> int:
    """Bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def soak(url: str, pid: int, clients: int, seconds: float) -> tuple[Tally, list[int]]:
    tally, memory = Tally(), []

    async def watch() -> None:
        while True:
            memory.append(resident(pid))
            await asyncio.sleep(5)

    watching = asyncio.create_task(watch())
    end = time.monotonic() + seconds
    await asyncio.gather(*(client(url, number, end, tally) for number in range(clients)))
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await asyncio.sleep(2)
    memory.append(resident(pid))
    return tally, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--herder", default=str(ROOT / ".venv/bin/herder"), help="the installed command")
    args = parser.parse_args()
    with serving([args.herder, "serve", "smollm2"], free_port()) as (url, pid, _):
        tally, memory = asyncio.run(soak(url, pid, args.clients, 60 * args.minutes))
        running = metric(url, "vllm:num_requests_running") + metric(url, "vllm:num_requests_waiting")
        pages = metric(url, "vllm:kv_cache_usage_perc")
        tokens = metric(url, "vllm:generation_tokens_total")
    problems = tally.problems
    first = [answer.times[0] for answer in tally.answers]
    half = memory[len(memory) // 2]
    if running:
        problems.append(f"{running:.0f} requests still run or wait")
    if pages:
        problems.append(f"{pages:.1%} of the pages are still held")
    if memory[-1] > GROWTH * half:
        problems.append(f"memory grew from {half / 1e6:.0f} MB to {memory[-1] / 1e6:.0f} MB")
    print(
        f"{args.minutes:g} minutes, {args.clients} clients: {len(tally.answers)} answers, {tally.cancelled} cancelled, "
        f"{tally.refused} told to come back; {tokens:.0f} tokens; first token p50 {percentile(first, 50):.2f} s, "
        f"p95 {percentile(first, 95):.2f} s, slowest {max(first):.2f} s; memory {half / 1e6:.0f} MB at half time, "
        f"{memory[-1] / 1e6:.0f} MB at the end, {max(memory) / 1e6:.0f} MB at most"
    )
    for problem in sorted(set(problems)):
        print(f"PROBLEM ({problems.count(problem)} times): {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
