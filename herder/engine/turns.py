"""Whose turn it is: requests of several groups (users of a server) are served by turns, not whole groups one by one.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a request begins, on a clock of tokens, where the last one of its
group ends, or now if its group has nothing waiting; and the earliest beginning is served first. So a group with a
hundred requests in line delays a newcomer by one of them, and within a group it is first come, first served.
"""

from __future__ import annotations

ANSWER = 256  # tokens that an answer counts for: nobody knows how long it will be


class Turns:
    """The clock and where each group's last request ends on it. Only groups ahead of the clock are remembered."""

    __slots__ = ("_ends", "_now")

    def __init__(self) -> None:
        self._now = 0
        self._ends: dict[str, int] = {}

    def begin(self, group: str, prompt_tokens: int) -> int:
        """Where a new request of the group begins."""
        start = max(self._now, self._ends.get(group, 0))
        self._ends[group] = start + prompt_tokens + ANSWER
        return start

    def served(self, start: int) -> None:
        """A request that begins at `start` is admitted: the clock shows its beginning."""
        if start > self._now:
            self._now = start
            self._ends = {group: end for group, end in self._ends.items() if end > start}
