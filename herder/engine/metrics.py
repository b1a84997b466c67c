"""What the engine has done so far, and what it holds now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Sums since the engine started; written by the loop's thread only."""

    steps: int = 0
    submitted: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    prompt_tokens: int = 0  # computed by the executor, not found in the cache; recomputed ones count again
    cached_tokens: int = 0  # found in the prefix cache on first admission
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    executor_seconds: float = 0.0  # from launch to result


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot (Engine.stats()). pages_*: `cached` pages are in the prefix cache, in use or not; `used` pages belong
    to running sequences. local_*: the same of the pages of the layers of bounded reach, 0 without a pool of their own.
    reread_tokens: of answers, computed again as prompts (reread.py); they are in none of the counters.
    """

    running: int
    waiting: int
    pages: int
    pages_used: int
    pages_cached: int
    evictions: int
    local_pages: int
    local_pages_used: int
    local_pages_cached: int
    local_evictions: int
    preemptions: int
    reread_tokens: int
    counters: Counters
