"""How fast an engine is, and what share of this machine's limits that is.

Prompts are random ids, different in every repetition, so that the prefix cache never helps; sampling is greedy and
nothing ends an answer early. Every figure is the median of the repetitions.

    prefill     a prompt of P tokens: P / (time from its scheduling to the first token)
    decode      one answer of G tokens after that prompt: (G - 1) / (time from the first token to the last)
    batched     N answers of G tokens at once after short prompts that are already in the cache: N * G / time

Limits. A step of decoding reads every weight once, and the KV entries of each sequence:
    bytes       packed weights (without the embedding table, unless it is the head too) + N * KV bytes at mean length
    of bandwidth = steps/s * bytes / measured read bandwidth over as many bytes as the weights
A token takes 2 operations a weight of every matrix:
    of compute  = tokens/s * 2 * weights / measured peak (int8 operations; float32 ones with dtype float32)
Attention is in neither formula, nor are activations: the shares are of what a perfect program could do at best.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from herder.core.batch import PAGE_TOKENS
from herder.core.config import ModelConfig
from herder.core.request import Request, Sampling

if TYPE_CHECKING:
    from herder.engine.engine import Engine
    from herder.engine.stream import Stream

SHORT = PAGE_TOKENS + 1  # tokens of a prompt of the batched runs: one page to find in the cache, and one token


class Plan(NamedTuple):
    prompt: int
    gen: int
    streams: tuple[int, ...]
    repeats: int

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.prompt, SHORT) + self.gen

    @property
    def pages(self) -> int:
        """KV pages that hold everything at once: the longest sequence, or all the streams with their cached prompts."""
        one = -(-self.context // PAGE_TOKENS)
        batched = -(-(SHORT + self.gen) // PAGE_TOKENS)
        return max(one, max(self.streams) * (batched + 1)) + 1

    @property
    def steps(self) -> int:
        """Measurements in all, for a progress display."""
        return self.repeats * (1 + len(self.streams))


class Speed(NamedTuple):
    """Tokens per second, one value a repetition; batched: by number of streams."""

    prefill: list[float]
    decode: list[float]
    batched: dict[int, list[float]]

    def medians(self) -> tuple[float, float, dict[int, float]]:
        batched = {streams: statistics.median(values) for streams, values in self.batched.items()}
        return statistics.median(self.prefill), statistics.median(self.decode), batched


class Limits(NamedTuple):
    """What a step needs, and what the machine gives. weights: bytes read a step. operations: of a token."""

    weights: int
    operations: int
    bandwidth: float  # bytes/s
    peak: float  # operations/s


class Shares(NamedTuple):
    """Fractions of the limits; batched: by number of streams."""

    prefill_of_peak: float
    decode_of_bandwidth: float
    batched_of_bandwidth: dict[int, float]
    batched_of_peak: dict[int, float]


def measure(engine: Engine, vocab: int, plan: Plan, progress: Callable[[int], None]) -> Speed:
    """Runs the plan. progress gets the number of measurements done."""
    generator = random.Random(0)
    _run(engine, [_request(generator, vocab, SHORT, 2)])  # threads awake, memory touched
    speed = Speed([], [], {streams: [] for streams in plan.streams})
    done = 0
    for _ in range(plan.repeats):
        (stream,) = _run(engine, [_request(generator, vocab, plan.prompt, plan.gen)])
        assert stream.finished is not None
        timings = stream.finished.timings
        speed.prefill.append(plan.prompt / timings.prefill)
        speed.decode.append((plan.gen - 1) / timings.decode)
        progress(done := done + 1)
        for streams in plan.streams:
            requests = [_request(generator, vocab, SHORT, plan.gen) for _ in range(streams)]
            _run(engine, [Request(request.prompt, max_tokens=1) for request in requests])
            started = time.perf_counter()
            _run(engine, requests)
            speed.batched[streams].append(streams * plan.gen / (time.perf_counter() - started))
            progress(done := done + 1)
    return speed


def shares(speed: Speed, limits: Limits, config: ModelConfig, plan: Plan, kv_bytes_per_value: int) -> Shares:
    """The medians as fractions of the limits, by the formulas above."""
    prefill, decode, batched = speed.medians()
    alone = config.kv_bytes(plan.prompt + plan.gen // 2, kv_bytes_per_value)
    short = config.kv_bytes(SHORT + plan.gen // 2, kv_bytes_per_value)
    return Shares(
        prefill * limits.operations / limits.peak,
        decode * (limits.weights + alone) / limits.bandwidth,
        {n: value / n * (limits.weights + n * short) / limits.bandwidth for n, value in batched.items()},
        {n: value * limits.operations / limits.peak for n, value in batched.items()},
    )


def operations(config: ModelConfig) -> int:
    """Multiplications and additions of one token in all matrices, the head included and the embedding look-up not."""
    attention = config.dim * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return 2 * (config.layers * (attention + 3 * config.dim * config.ffn_dim) + config.vocab * config.dim)


def _request(generator: random.Random, vocab: int, prompt: int, gen: int) -> Request:
    return Request(tuple(generator.choices(range(vocab), k=prompt)), max_tokens=gen, sampling=Sampling())


def _run(engine: Engine, requests: Sequence[Request]) -> list[Stream]:
    """All requests at once; returns when the last one has ended. Raises what ended one by error."""
    streams = [engine.submit(request) for request in requests]
    for stream in streams:
        _, finished = stream.result()
        if finished.error is not None:
            raise finished.error
    return streams
