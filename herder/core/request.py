"""One engine request and what comes back: the same for the command line, the Python API and every server dialect."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from herder.core.errors import UsageError

MAX_TOP_LOGPROBS = 64  # HD_MAX_TOP of the native core


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose a token. The order of the steps is fixed (docs/numerics.md): bias, penalties, mask, temperature,
    top-k, top-p, min-p, draw.

    temperature 0 is greedy (lowest id wins a tie). top_k 0, top_p 1, min_p 0 and penalties (1, 0, 0) are off.
    seed: the same request with the same seed gives the same text; None lets the engine draw one and report it.
    logprobs: None, or how many alternatives to report beside each token (0 = the token's own log-probability only).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)!r}: {rule}")

        finite = math.isfinite
        check(finite(self.temperature) and 0 <= self.temperature <= 100, "temperature", "must be between 0 and 100")
        check(self.top_k >= 0, "top_k", "must be 0 (off) or more")
        check(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1 (off)")
        check(0 <= self.min_p <= 1, "min_p", "must be between 0 (off) and 1")
        check(
            finite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "must be above 0 (1 is off)",
        )
        check(finite(self.presence_penalty), "presence_penalty", "must be a finite number (0 is off)")
        check(finite(self.frequency_penalty), "frequency_penalty", "must be a finite number (0 is off)")
        check(self.seed is None or 0 <= self.seed < 2**64, "seed", "must be between 0 and 2**64 - 1")
        check(
            self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
            "logprobs",
            f"must be between 0 and {MAX_TOP_LOGPROBS}",
        )
        for token, bias in self.logit_bias:
            if token < 0 or math.isnan(bias):
                raise UsageError(f"logit_bias has {token}: {bias!r}: ids are 0 or more and a bias is a number")

    @property
    def penalizes(self) -> bool:
        """Whether any penalty needs to see the history."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-turn token, a stop string or a stop token
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # the caller cancelled
    ERROR = "error"  # the executor failed; Finished.error says how


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token under the model (before bias, penalties, mask and temperature)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image of a prompt, prepared for the model's vision tower.

    pixels: float32, normalized, contiguous, (tiles, 3, tile, tile); for Llama 4 the global tile, if any, is the last.
    grid: (rows, columns) of the tiles that the image was cut into, the global tile not among them.
    positions: the prompt positions that the image's embeddings replace, in order (Llama 4: its patch tokens); for
    Llama 3.2 Vision the one position of its image token, from which on it is seen.
    key: SHA-256 over pixels and grid: equal keys mean equal images, which the prefix cache relies on.
    """

    pixels: Any
    grid: tuple[int, int]
    positions: Sequence[int]
    key: bytes


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be. kind "json": any JSON object; "schema": JSON that the JSON Schema `value` admits (a
    mapping); "regex": text that the regular expression `value` matches whole; "choice": one of the strings of `value`;
    "lark": what a grammar in llguidance's kind of Lark admits. text/grammar.py compiles it; one that cannot be compiled
    is the caller's error and never dropped."""

    kind: Literal["json", "schema", "regex", "choice", "lark"]
    value: Any = None


class Grammar(Protocol):
    """What the tokens of an output may be, at the place that has been reached. One object belongs to one request.

    Where the output may end, and only there, the mask allows the grammar's end tokens, which the engine takes for stop
    tokens. Any method may raise UsageError: the grammar has become too complex for its limits.
    """

    def mask(self) -> bytes:
        """The tokens allowed next: ceil(vocab / 32) little-endian uint32 words, bit set = allowed; never all zero."""
        ...

    def accept(self, token: int) -> bool:
        """Goes on by a token; False, and nothing changes, for one that is not allowed."""
        ...

    def rollback(self, tokens: int) -> None:
        """Takes the last so many accepted tokens back."""
        ...

    def copy(self) -> Grammar:
        """Another one at the same place, for another request."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the output is whole and nothing can follow."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end the output; accept() is not called with them."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine runs: tokens in, tokens out. Text lives above (text/, chat/).

    stop_tokens end the generation and are not part of the output. max_tokens None: as long as the context holds.
    priority: lower runs first. group: whose request it is: of equal priority, groups are served by turns, and within a
    group it is first come, first served.
    grammar: what the output must be, at its beginning; the request owns it. An output that is complete ends (STOP).
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    priority: int = 0
    group: str = ""
    images: tuple[Image, ...] = ()
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Runs the model over given tokens and reports on them; nothing is generated.

    report: "scores": natural log-probability of tokens[i] given tokens[:i], for every i >= max(first, 1);
    "logits": the logits after each position i >= first; "hidden": the final norm's output there.
    Positions before `first` may come from the prefix cache; those from it on are always computed.
    """

    tokens: tuple[int, ...]
    report: Literal["scores", "logits", "hidden"]
    first: int = 0
    priority: int = 0
    group: str = ""
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens whose KV entries were found in the prefix cache


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on the monotonic clock, as durations."""

    queue: float  # submit -> first scheduled
    prefill: float  # first scheduled -> first token
    decode: float  # first token -> last token


@dataclass(frozen=True, slots=True)
class NewToken:
    """An event of a running request: one token was generated."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An event of a running evaluation: its results for some more positions, in order.

    scores: one float per position. logits, hidden: float32 buffers of vocab or dim values per position.
    """

    first: int  # scores: index of the first token scored; logits, hidden: the first position
    scores: Sequence[float] = ()
    logits: Any = None
    hidden: Any = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    stop_token: int | None = None  # the stop token that ended it, if one did
    error: Exception | None = None


Event = NewToken | Evaluated | Finished
