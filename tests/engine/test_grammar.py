"""Answers held to a form by the engine: whatever the executor would draw, what is generated validates, and batches,
preemption, speculation and a failure beside it change nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.batch import Limits
from herder.core.errors import UsageError
from herder.core.request import Constraint, Finished, FinishReason, Grammar, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.runtime.fake import FakeExecutor
from herder.text.grammar import Grammars
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from tests.engine.test_guarantee import Reader
from tests.tiny_vocabulary import EOS, MERGES, VOCAB, vocabulary


@pytest.fixture(scope="session")
def tiny() -> tuple[Tokenizer, Grammars]:
    tokens, types = vocabulary()
    name = "tokenizer.ggml."
    keys = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": types, "merges": list(MERGES)}
    tokenizer = load_tokenizer({name + key: value for key, value in {**keys, "eos_token_id": EOS}.items()})
    return tokenizer, Grammars(tokenizer, VOCAB, frozenset({EOS}))


def limits(pages: int = 64) -> Limits:
    return Limits(pages=pages, context=1200, batch_tokens=64, batch_chunks=8, vocab=VOCAB)


def run(requests: list[Request], policy: Policy, pages: int = 64) -> tuple[list[Reader], Loop]:
    """All of them together. A request's grammar is used up, so each run gets copies."""
    loop = Loop(FakeExecutor(limits(pages)), policy)
    readers = [Reader() for _ in requests]
    for request, reader in zip(requests, readers, strict=True):
        grammar = None if request.grammar is None else request.grammar.copy()
        loop.add(replace(request, grammar=grammar), reader.events.append, request.sampling.seed or 0)
    while loop.step():
        pass
    assert all(reader.finished is not None for reader in readers)
    return readers, loop


leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "string", "minLength": 2, "maxLength": 3},
            {"const": {"a": [1, "é"]}},
            {"enum": ["x", 1, None, "a\nb"]},
            {"type": "integer", "minimum": 3, "multipleOf": 5, "maximum": 90},
            {"type": ["integer", "null"], "exclusiveMinimum": -3, "maximum": 20},
        ]
    ),
    st.tuples(st.integers(-99, 0), st.integers(1, 99)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[1]}
    ),
)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "key with space", "é", 'q"'])
    return st.tuples(st.dictionaries(names, inner, max_size=3), st.integers(0, 3)).map(
        lambda drawn: {
            "type": "object",
            "properties": drawn[0],
            "required": sorted(drawn[0])[: drawn[1]],
            "additionalProperties": False,
        }
    )


def arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(inner, st.integers(0, 1), st.integers(1, 2)).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1], "maxItems": drawn[2]}
    )


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some})
    ),
    max_leaves=4,
)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    logit_bias=st.sampled_from([(), ((5, 100.0),), ((40, -100.0), (90, 100.0))]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=60)
@given(schema=schemas, sampling=samplings)
def test_any_answer_validates(tiny: tuple[Tokenizer, Grammars], schema: dict[str, Any], sampling: Sampling) -> None:
    tokenizer, grammars = tiny
    grammar = grammars.compile(Constraint("schema", schema))
    [reader], _ = run([Request((1, 2, 3), max_tokens=900, sampling=sampling, grammar=grammar)], Policy())
    finished = reader.finished
    assert finished is not None and finished.reason is FinishReason.STOP, "bounded schemas end"
    answer = json.loads(tokenizer.decode(reader.tokens))
    jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)


# Digits of one to four bytes, written out: what \d matches depends on the version of Unicode, and llguidance's is newer
# than that of some Pythons.
DIGIT = r"[0-9\u07c0-\u07c9\u0e50-\u0e59\U0001d7ce-\U0001d7ff]"
PATTERNS = [rf"[A-Z][a-z]{{0,5}} {DIGIT}{{2,4}}", r"(yes|no)(, (yes|no)){0,3}", r"[a-z]{1,4}@[^ -~]{1,4}\.(org|com)"]


@dataclass(frozen=True)
class Asked:
    constraint: Constraint | None
    sampling: Sampling
    priority: int


asked = st.builds(
    Asked,
    st.one_of(
        st.none(),
        schemas.map(lambda schema: Constraint("schema", schema)),
        st.sampled_from(PATTERNS).map(lambda pattern: Constraint("regex", pattern)),
        st.lists(st.sampled_from(["red", "green", "blue ", "red wine"]), min_size=1).map(
            lambda c: Constraint("choice", c)
        ),
    ),
    samplings,
    st.integers(0, 1),
)


@settings(max_examples=40)
@given(
    some=st.lists(asked, min_size=1, max_size=5),
    pages=st.integers(8, 20),
    policy=st.builds(Policy, speculate=st.sampled_from([0, 4]), prefill_tokens=st.integers(1, 40)),
)
def test_company_and_speculation_change_nothing(
    tiny: tuple[Tokenizer, Grammars], some: list[Asked], pages: int, policy: Policy
) -> None:
    tokenizer, grammars = tiny
    requests = [
        Request(
            (1, 2, 3) * 9,  # repeats itself, so that something is drafted
            max_tokens=180,
            sampling=one.sampling,
            stop_tokens=frozenset({EOS}),
            priority=one.priority,
            grammar=None if one.constraint is None else grammars.compile(one.constraint),
        )
        for one in some
    ]
    together, _ = run(requests, policy, pages)
    for one, request, reader in zip(some, requests, together, strict=True):
        [alone], _ = run([request], Policy(prefix_cache=False))
        assert reader.tokens == alone.tokens
        assert reader.finished is not None and alone.finished is not None
        assert reader.finished.reason is alone.finished.reason
        if one.constraint is None or reader.finished.reason is not FinishReason.STOP:
            continue
        text = tokenizer.decode(reader.tokens)
        if one.constraint.kind == "schema":
            jsonschema.validate(json.loads(text), one.constraint.value, jsonschema.Draft202012Validator)
        elif one.constraint.kind == "regex":
            assert re.fullmatch(one.constraint.value, text)
        else:
            assert text in one.constraint.value


def test_drafts_are_accepted_under_a_grammar(tiny: tuple[Tokenizer, Grammars]) -> None:
    tokenizer, grammars = tiny
    grammar = grammars.compile(Constraint("regex", "(abcdefgh ){60}"))
    request = Request((1,), sampling=Sampling(seed=1), grammar=grammar)
    [plain], slow = run([request], Policy())
    [fast], quick = run([request], Policy(speculate=6))
    assert tokenizer.decode(fast.tokens) == "abcdefgh " * 60 == tokenizer.decode(plain.tokens)
    assert fast.tokens == plain.tokens
    assert quick.counters.accepted_tokens > 200 and quick.counters.steps < slow.counters.steps / 2


def test_an_answer_ends_where_it_is_complete(tiny: tuple[Tokenizer, Grammars]) -> None:
    """Without an end token where nothing can follow; with one where something could; cut off at the maximum."""
    tokenizer, grammars = tiny

    def answer(regex: str, **options: Any) -> tuple[str, Finished]:
        grammar = grammars.compile(Constraint("regex", regex))
        [reader], _ = run([Request((1,), grammar=grammar, sampling=Sampling(seed=3), **options)], Policy())
        assert reader.finished is not None
        return tokenizer.decode(reader.tokens), reader.finished

    text, finished = answer("abc")
    assert (text, finished.reason, finished.stop_token) == ("abc", FinishReason.STOP, None)
    text, finished = answer("ab*", max_tokens=1000)
    assert re.fullmatch("ab*", text) and finished.stop_token == EOS
    text, finished = answer("a{50}", max_tokens=7)
    assert text == "aaaaaaa" and finished.reason is FinishReason.LENGTH
    text, finished = answer("a{7}", max_tokens=7)
    assert finished.reason is FinishReason.STOP, "complete goes before cut off"


class Failing:
    """A grammar that allows everything and fails at its n-th mask or token."""

    end_tokens = frozenset({EOS})
    complete = False

    def __init__(self, masks: int, tokens: int) -> None:
        self.masks, self.tokens = masks, tokens

    def mask(self) -> bytes:
        self.masks -= 1
        if self.masks < 0:
            raise UsageError("too complex")
        return b"\xff" * (-(-VOCAB // 32) * 4)

    def accept(self, token: int) -> bool:
        self.tokens -= 1
        if self.tokens < 0:
            raise UsageError("too complex")
        return True

    def rollback(self, tokens: int) -> None:
        self.tokens += tokens

    def copy(self) -> Grammar:
        return Failing(self.masks, self.tokens)


@pytest.mark.parametrize(("masks", "tokens"), [(0, 9), (3, 9), (9, 0), (9, 3)])
@pytest.mark.parametrize("speculate", [0, 4])
def test_a_failing_grammar_ends_its_own_request_alone(masks: int, tokens: int, speculate: int) -> None:
    other = Request((1, 2, 3) * 5, max_tokens=30, sampling=Sampling(seed=5))
    failing = replace(other, grammar=Failing(masks, tokens))
    readers, loop = run([other, failing, other], Policy(speculate=speculate))
    assert readers[0].tokens == readers[2].tokens and len(readers[0].tokens) == 30
    finished = readers[1].finished
    assert finished is not None and finished.reason is FinishReason.ERROR and isinstance(finished.error, UsageError)
    assert len(readers[1].tokens) <= 3
    assert loop.idle and loop.stats().pages_used == 0


def test_a_grammar_alone_fails_in_a_batch_of_its_own() -> None:
    readers, loop = run([Request((1,), grammar=Failing(0, 0))], Policy())
    assert readers[0].finished is not None and readers[0].finished.reason is FinishReason.ERROR
    assert not [event for event in readers[0].events if isinstance(event, NewToken)] and loop.counters.steps == 0
