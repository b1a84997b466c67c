"""A server under load beside llama.cpp's: throughput, time to first token, gaps; writes docs/serving.{json,md}.

    python -m bench.serve --llama-server FILE [--rounds 3] [--quick]

Both serve the same file on this machine, which also runs the clients. Rounds interleave the two, each on a server
just started; the figures are medians over the rounds. llama-server is tried with flash attention and without, and the
better one of a first round counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.load import Load, figures, run
from bench.models import ROOT, cpu_name, default_model

STREAMS = 32
USERS = 16
WORDS = ("river", "stone", "lamp", "winter", "garden", "letter", "ship", "music", "bread", "window", "forest", "clock")
ANSWER = 64  # tokens


def question(number: int, length: int) -> str:
    """A text of about `length` tokens that no other number has."""
    picked = [WORDS[(number * 7 + i * (number % 13 + 3) + i // 12) % len(WORDS)] for i in range(length - 12)]
    return f"Story {number}: {' '.join(picked)}. What happens next?"


def body(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {"model": "smollm2", "messages": messages, "max_tokens": ANSWER, "temperature": 0.7, "seed": 1}


def loads() -> dict[str, Load]:
    system = {"role": "system", "content": "You are a careful assistant. " + question(999, 500)}
    alone = [[body([{"role": "user", "content": question(i, 128)}])] for i in range(STREAMS)]
    shared = [
        [body([system, {"role": "user", "content": question(100 + 10 * user + turn, 48)}]) for turn in range(3)]
        for user in range(USERS)
    ]
    one = [[body([{"role": "user", "content": question(500 + i, 128)}]) for i in range(4)]]
    return {
        "one user": Load(one),
        f"{STREAMS} users at once": Load(alone),
        f"{USERS} users, one system prompt": Load(shared),
    }


@contextlib.contextmanager
def serving(command: list[str], port: int) -> Iterator[tuple[str, int, float]]:
    """(url, process id, seconds from the process's start until /health answers)."""
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with status {process.returncode}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.005)
        yield url, process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(command: list[str], names: dict[str, Load]) -> dict[str, Any]:
    with serving(command, free_port()) as (url, _, ready):
        asyncio.run(run(url, Load([[body([{"role": "user", "content": "Hello"}])]])))
        return {"ready": ready} | {name: figures(*asyncio.run(run(url, load))) for name, load in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", required=True, help="llama.cpp's server, built for this machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round; writes nothing")
    parser.add_argument("--herder", default=str(ROOT / ".venv/bin/herder"), help="the installed command")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    model, names = default_model(), loads()
    threads = str(os.cpu_count())
    ours = [args.herder, "serve", "smollm2"]
    theirs = [args.llama_server, "-m", str(model), "-np", str(STREAMS), "-c", str(STREAMS * 2048), "-t", threads]
    flash = {on: measure([*theirs, "-fa", on], names) for on in ("on", "off")}
    rate = f"{STREAMS} users at once"
    better = max(flash, key=lambda on: flash[on][rate]["tokens_per_s"])
    commands = {"Herder": ours, f"llama-server (-fa {better})": [*theirs, "-fa", better]}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(1 if args.quick else args.rounds):
        for name, command in commands.items():
            rounds[name].append(measure(command, names))
    text = page(rounds, names, model)
    print(text)
    if not args.quick:
        (args.out / "serving.md").write_text(text, encoding="utf-8")
        result = {"date": datetime.date.today().isoformat(), "cpu": cpu_name(), "rounds": rounds, "flash": flash}
        (args.out / "serving.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def page(rounds: dict[str, list[dict[str, Any]]], names: dict[str, Load], model: Path) -> str:
    count = len(next(iter(rounds.values())))
    lines = [
        "# Serving",
        "",
        f"Made by `bench/serve.py` on {datetime.date.today().isoformat()}: {cpu_name()}, {os.cpu_count()} cores, "
        f"which run the clients too. {model.name}; medians of {count} interleaved rounds, each on a fresh server; "
        f"answers of up to {ANSWER} tokens, sampled at 0.7 and streamed. *ttft*: from sending the request to the first "
        "piece of the answer. *gap*: between two pieces.",
    ]
    for name in names:
        lines += [
            "",
            f"## {name}",
            "",
            "| | tokens/s | ttft p50 | ttft p95 | gap p50 | gap p99 |",
            "|---|---|---|---|---|---|",
        ]
        for server, measured in rounds.items():
            median = {key: statistics.median(one[name][key] for one in measured) for key in measured[0][name]}
            seconds = [f"{1000 * median[key]:.0f} ms" for key in ("ttft_p50", "ttft_p95", "gap_p50", "gap_p99")]
            lines.append(f"| {server} | {median['tokens_per_s']:.0f} | {' | '.join(seconds)} |")
    ready = [f"{name} {statistics.median(one['ready'] for one in measured):.2f} s" for name, measured in rounds.items()]
    return "\n".join([*lines, "", f"Process start until `/health` answers: {', '.join(ready)}.", ""])


if __name__ == "__main__":
    main()
