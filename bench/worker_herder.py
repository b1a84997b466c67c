"""Herder as a measured process, driven by bench/llamacpp.py with the commands of bench/peer_llamacpp.py.

    {"do": "load", "path": ..., "threads": 2}      -> {"version", "system", "parameters"}
    {"do": "limits"}                               -> {"bandwidth", "int8_ops", "f32_flops"} of this machine
    {"do": "prefill", ...}, {"do": "decode", ...}  -> {"seconds"}

Requests go through the whole engine and are sampled (greedily). Prompts are random and new each time, so the prefix
cache helps only where it is meant to: before a decode measurement the prompts are put into it.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from herder.core.batch import PAGE_TOKENS
from herder.core.request import Request
from herder.engine.engine import Engine
from herder.runtime import abi
from herder.runtime.native import load_model
from herder.weights.source import open_model

CONTEXT = 1024
KV_TOKENS = 32 * 256  # 32 streams of up to 256 tokens


class Measured:
    """An engine on one model."""

    def __init__(self, path: str, threads: int) -> None:
        with open_model(Path(path)) as files:
            self.config = files.config
            self.weight_bytes = sum(t.bytes for t in files.tensors)
            executor = load_model(
                files, context=min(CONTEXT, self.config.context), kv_pages=KV_TOKENS // PAGE_TOKENS, threads=threads
            )
        self.threads = threads
        self.engine = Engine(executor)
        self.random = random.Random(0)

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.choices(range(self.config.vocab), k=length))

    def run(self, requests: list[Request]) -> float:
        """Wall-clock seconds from the first submission to the last answer."""
        begin = time.perf_counter()
        streams = [self.engine.submit(request) for request in requests]
        for stream in streams:
            _, finished = stream.result()
            if finished.error is not None:
                raise finished.error
        return time.perf_counter() - begin

    def prefill(self, prompt: int) -> float:
        return self.run([Request(self.prompt(prompt), max_tokens=1)])

    def decode(self, prompt: int, gen: int, streams: int) -> float:
        """gen steps of `streams` tokens. Prompts are whole pages and one token, which the first step computes."""
        prompts = [self.prompt(prompt // PAGE_TOKENS * PAGE_TOKENS + 1) for _ in range(streams)]
        self.run([Request(p, max_tokens=1) for p in prompts])
        return self.run([Request(p, max_tokens=gen) for p in prompts])


def herder_version() -> str:
    try:
        return version("herder")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "(source tree)"


def main() -> None:
    measured: Measured | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        answer: dict[str, Any]
        if do == "load":
            measured = Measured(**command)
            config = measured.config
            head = config.vocab * config.dim
            answer = {
                "version": herder_version(),
                "system": abi.cpu_info()["isa"],
                "parameters": {"layers": config.parameters - head * (1 if config.tied else 2), "head": head},
            }
        elif do == "limits":
            assert measured, "load first"
            answer = abi.measure(measured.threads, measured.weight_bytes)._asdict()
        elif do in {"prefill", "decode"}:
            assert measured, "load first"
            answer = {"seconds": getattr(measured, do)(**command)}
        else:
            raise SystemExit(f"no command {do!r}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
