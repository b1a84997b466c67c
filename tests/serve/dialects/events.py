"""Answers made up by hypothesis, as the events of serve/wire.py: what the tests of every dialect's streams feed."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from herder.core.request import TokenLogprob
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    CallArguments,
    CallStarted,
    Choice,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["weather", "get_time", "f"])
arguments = st.dictionaries(texts, st.one_of(st.none(), st.integers(-5, 5), texts), max_size=3)


def token_logprobs(token: int) -> TokenLogprob:
    return TokenLogprob(token, -token / 7, ((token, -token / 7), (token + 1, float("-inf"))))


@st.composite
def choices(draw: st.DrawFn, index: int, *, calls: bool, reasoning: bool, logprobs: bool) -> list[AnswerEvent]:
    """The events of one choice: perhaps reasoning, text, perhaps calls, each in pieces."""
    events: list[AnswerEvent] = []
    if reasoning:
        events += [ReasoningDelta(index, piece) for piece in draw(st.lists(texts.filter(bool), max_size=3))]
    for piece in draw(st.lists(texts.filter(bool), max_size=4)):
        tokens = draw(st.lists(st.integers(0, 254), max_size=3)) if logprobs else []
        events.append(TextDelta(index, piece, tuple(map(token_logprobs, tokens))))
    called = draw(st.lists(st.tuples(names, arguments), max_size=2)) if calls else []
    for number, (name, values) in enumerate(called):
        spelled = json.dumps(values)
        cut = draw(st.integers(0, len(spelled)))
        events.append(CallStarted(index, number, f"call_{index}_{number}", name))
        events += [CallArguments(index, number, piece) for piece in (spelled[:cut], spelled[cut:]) if piece]
    reason = "tool_calls" if called else draw(st.sampled_from(["stop", "length"]))
    events.append(Ended(index, reason, None, draw(st.integers(0, 9)), 7))  # type: ignore[arg-type]
    return events


@st.composite
def streams(
    draw: st.DrawFn, n: int, *, calls: bool = True, reasoning: bool = True, logprobs: bool = False
) -> list[AnswerEvent]:
    """The events of a whole answer, those of its choices mixed as they would come."""
    waiting = [draw(choices(i, calls=calls, reasoning=reasoning, logprobs=logprobs)) for i in range(n)]
    events: list[AnswerEvent] = [Started(draw(st.integers(1, 99)), draw(st.integers(0, 9)), draw(st.integers(0, 9)))]
    while waiting:
        chosen = draw(st.integers(0, len(waiting) - 1))
        events.append(waiting[chosen].pop(0))
        waiting = [one for one in waiting if one]
    return [*events, Done(5, draw(st.integers(0, 99)), 2, 1, 0.1, 0.2, 0.3)]


def whole(events: list[AnswerEvent], n: int) -> Answer:
    answer = Answer([Choice() for _ in range(n)])
    for event in events:
        answer.feed(event)
    return answer
