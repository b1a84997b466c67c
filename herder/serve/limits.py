"""Limits per minute of an API key: requests exactly, tokens with a debt that later minutes pay."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MINUTE = 60.0


@dataclass(slots=True)
class RequestWindow:
    """Never more than `limit` requests in any minute, wherever it begins: a log of the last minute's admissions."""

    _times: deque[float] = field(default_factory=deque)

    def wait(self, limit: int, now: float) -> float:
        """Seconds until one more request may begin; 0 if it may now. now: of any clock that never goes back."""
        times = self._times
        while times and times[0] <= now - MINUTE:
            times.popleft()
        return 0.0 if len(times) < limit else times[len(times) - limit] + MINUTE - now

    def add(self, now: float) -> None:
        self._times.append(now)


@dataclass(slots=True)
class TokenWindow:
    """At most `limit` tokens a minute, on the average of any time that a key is busy.

    How many tokens an answer takes is known when it ends, so they are counted then, the prompt's too, and a request is
    admitted while the last minute's count is below the limit. Those under way together can therefore exceed it; the
    excess is a debt: tokens stay in the count as long as the limit would have needed for them, not just a minute.
    """

    _spent: deque[tuple[float, int]] = field(default_factory=deque)  # until when, tokens
    _total: int = 0

    def wait(self, limit: int, now: float) -> float:
        """Seconds until a request may begin, if none of those under way ends before; 0 if it may now."""
        spent = self._spent
        while spent and spent[0][0] <= now:
            self._total -= spent.popleft()[1]
        total = self._total
        if total < limit:
            return 0.0
        for until, tokens in spent:
            total -= tokens
            if total < limit:
                return until - now
        raise AssertionError("an empty window is below any limit")

    def add(self, tokens: int, limit: int, now: float) -> None:
        if tokens <= 0:
            return
        self.wait(limit, now)
        self._total += tokens
        until = now + MINUTE * max(1.0, self._total / limit)
        if self._spent:
            until = max(until, self._spent[-1][0])
        self._spent.append((until, tokens))


@dataclass(slots=True)
class Windows:
    """One key's."""

    requests: RequestWindow = field(default_factory=RequestWindow)
    tokens: TokenWindow = field(default_factory=TokenWindow)
