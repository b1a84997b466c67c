"""Herder as a measured process, driven by bench/cpu.py with the commands of bench/peer_llamacpp.py, and these:

    {"do": "load", "path": ..., "threads": 2, "tokens": 4096, "isa": null, "compute": "auto",
     "prompt_dtype": "auto"}
                                   -> {"version", "system", "model"}   tokens: the KV cache has room for so many
    {"do": "limits"}               -> {"bandwidth", "int8_ops", "f32_flops", "vnni_ops"} of this machine
    {"do": "tokenize", "path": ..., "text": ...}    -> {"tokens"}
    {"do": "speculate", "path": ..., "threads": 2, "text": ..., "gen": 256, "most": 0}
                                   -> {"seconds", "tokens"}   a greedy answer to a question; most: tokens guessed ahead

    worker_herder.py first-token MODEL      prints the first greedy token of a fixed prompt, and ends

Requests go through the whole engine and are sampled (greedily). Prompts are random and new each time, so the prefix
cache helps only where it is meant to: before a decode measurement the prompts are put into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from herder.core.batch import PAGE_TOKENS
from herder.core.request import Evaluation, Request
from herder.engine.engine import Engine
from herder.engine.scheduler import Policy
from herder.runtime import abi
from herder.runtime.native import load_model
from herder.runtime.prompts import PromptDtype
from herder.weights.source import open_model

VNNI = "avx512vnni"


class Measured:
    """An engine on one model."""

    def __init__(
        self,
        path: str,
        threads: int,
        tokens: int,
        isa: str | None = None,
        compute: Literal["auto", "float32"] = "auto",
        prompt_dtype: PromptDtype = "auto",
    ) -> None:
        self.path = path
        with open_model(Path(path)) as files:
            self.config = files.config
            self.weight_bytes = sum(t.bytes for t in files.tensors)
            executor = load_model(
                files,
                context=min(tokens, self.config.context),
                kv_pages=tokens // PAGE_TOKENS,
                threads=threads,
                isa=isa,
                compute=compute,
                prompt_dtype=prompt_dtype,
            )
        self.threads, self.isa = threads, isa
        self.engine = Engine(executor, Policy(reread=False))  # a peer may be measured while this one rests
        self.random = random.Random(0)

    def model(self) -> dict[str, int]:
        """layers, head: weights of the matrices. kv: bytes of a token's keys and values in 16 bits."""
        config = self.config
        head = config.vocab * config.dim
        layers = config.parameters - head * (1 if config.tied else 2)
        return {"layers": layers, "head": head, "kv": config.kv_bytes(1), "tied": config.tied, "vocab": config.vocab}

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

    def logits(self, tokens: list[int]) -> Any:
        """float32, (tokens, vocabulary)."""
        import numpy as np

        pieces = []
        for event in self.engine.submit(Evaluation(tuple(tokens), "logits")):
            if (error := getattr(event, "error", None)) is not None:
                raise error
            if (values := getattr(event, "logits", None)) is not None:
                pieces.append(np.frombuffer(values, np.float32).reshape(-1, self.config.vocab))
        return np.concatenate(pieces)


def speculate(path: str, threads: int, text: str, gen: int, most: int) -> dict[str, Any]:
    """The second of two equal answers: the prompt is in the prefix cache, so that decoding is what is timed."""
    from herder import load

    with load(path, threads=threads, context=2048, speculate=most) as model:
        model.chat(text, max_tokens=1, temperature=0.0)
        begin = time.perf_counter()
        completion = model.chat(text, max_tokens=gen, temperature=0.0)
        return {"seconds": time.perf_counter() - begin, "tokens": list(completion.tokens)}


def tokenize(path: str, text: str) -> list[int]:
    from herder import load

    with load(path) as model:
        return list(model.tokens(text))


def core_version() -> str:
    """The release, and the build of the core: what the figures depend on."""
    import herder

    (library,) = (p for p in (Path(herder.__file__).parent / "_core").iterdir() if p.stem == "libherder_core")
    try:
        release = version("herder")
    except PackageNotFoundError:  # run from a source tree that is not installed
        release = "(source tree)"
    return f"{release}, core {hashlib.sha256(library.read_bytes()).hexdigest()[:12]}"


def first_token(path: str) -> None:
    from bench.prompts import START

    measured = Measured(path, threads=2, tokens=512)
    events, finished = measured.engine.submit(Request(tuple(START), max_tokens=1)).result()
    if finished.error is not None:
        raise finished.error
    print(events, flush=True)
    os._exit(0)


def limits(measured: Measured) -> dict[str, float]:
    """Of the instruction set that the model runs on. vnni_ops: what it would be with AVX-512's 8-bit dot product
    (`vpdpbusd`), where the CPU has it and may choose."""
    found = abi.measure(measured.threads, measured.weight_bytes, isa=measured.isa)._asdict()
    if measured.isa is None and VNNI in abi.cpu_info()["isas"]:
        found["vnni_ops"] = abi.measure(measured.threads, 1 << 20, isa=VNNI).int8_ops
    return found


def main() -> None:
    if sys.argv[1:2] == ["first-token"]:
        return first_token(sys.argv[2])
    measured: Measured | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        answer: dict[str, Any]
        if do == "load":
            measured = Measured(**command)
            system = command.get("isa") or abi.cpu_info()["isa"]
            answer = {"version": core_version(), "system": system, "model": measured.model()}
        elif do == "limits":
            assert measured, "load first"
            answer = limits(measured)
        elif do == "tokenize":
            answer = {"tokens": tokenize(**command)}
        elif do == "speculate":
            answer = speculate(**command)
        elif do in {"prefill", "decode"}:
            assert measured, "load first"
            answer = {"seconds": getattr(measured, do)(**command)}
        elif do == "logits":
            from bench.divergence import answer as divergence_answer

            assert measured, "load first"
            answer = dict(divergence_answer(measured.logits(command["tokens"]), command["path"], command["write"]))
        else:
            raise SystemExit(f"no command {do!r}")
        print(json.dumps(answer), flush=True)
    return None


if __name__ == "__main__":
    main()
