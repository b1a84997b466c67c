"""Constraints over real vocabularies: the bridge to llguidance, what is allowed, and what is refused in one line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.core.request import Constraint
from herder.text import grammar as module
from herder.text.grammar import Composite, Grammars, TokenGrammar, bridge
from herder.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def vocabularies(smollm: Tokenizer, llama3: Tokenizer, spm: Tokenizer) -> dict[str, tuple[Tokenizer, Grammars]]:
    """Byte-level BPE, tiktoken, SentencePiece."""
    found = {"smollm": smollm, "llama3": llama3, "spm": spm}
    return {name: (t, Grammars(t, t.vocab_size, t.stop_ids)) for name, t in found.items()}


def allowed(grammar: TokenGrammar) -> set[int]:
    bits = np.unpackbits(np.frombuffer(grammar.mask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def admits(grammar: TokenGrammar, tokens: list[int]) -> bool:
    for token in tokens:
        if token not in allowed(grammar):
            assert not grammar.accept(token)
            return False
        assert grammar.accept(token)
    return grammar.may_end


@pytest.mark.parametrize("name", ["smollm", "llama3", "spm"])
def test_the_bridge_is_exact(vocabularies: dict[str, tuple[Tokenizer, Grammars]], name: str) -> None:
    """Every token but the control tokens is its bytes; two of those are left out (see the bridge)."""
    tokenizer, _ = vocabularies[name]
    size = tokenizer.vocab_size
    theirs = bridge(tokenizer, size, tokenizer.stop_ids)
    assert theirs.vocab_size == size and set(theirs.eos_tokens) == tokenizer.stop_ids
    different = []
    for token in range(size):
        control = tokenizer.is_control(token)
        assert theirs.is_special_token(token) == control, tokenizer.token(token)
        if not control and theirs.decode_bytes([token]) != tokenizer.token_bytes(token):
            different.append(tokenizer.token_bytes(token))
    spaces = [b" "] if name == "spm" else []
    assert sorted(different) == sorted([*spaces, *[raw for raw in different if raw.startswith(b"\xff")]])


@pytest.mark.parametrize("name", ["smollm", "llama3", "spm"])
@pytest.mark.parametrize("start", [True, False])
def test_whole_texts(vocabularies: dict[str, tuple[Tokenizer, Grammars]], name: str, start: bool) -> None:
    tokenizer, grammars = vocabularies[name]
    for constraint, good, bad in [
        (Constraint("json"), ['{"a": [1, "é\U0001f999"]}', "{}"], ["[1]", "{", " {}", "{} "]),
        (Constraint("regex", r"\s*x+|a/b\n"), ["x", " xx", "a/b\n"], ["", "y", "a"]),
        (Constraint("regex", r"\d{2}"), ["42", "4\u0e56", "\U0001d7d2\u0664"], ["4", "4\u0e01", "4\xb2"]),
        (Constraint("choice", ["Paris", "New York", 'a"b\\c\n', "é"]), ["Paris", 'a"b\\c\n', "é"], [" Paris", "New"]),
        (Constraint("choice", ["", "yes"]), ["", "yes"], ["y"]),
        (Constraint("lark", 'start: "a" inner? "c"\ninner: "b" inner?'), ["ac", "abbbc"], ["abb", "b"]),
    ]:
        for text in good + bad:
            grammar = grammars.compile(constraint, start=start)
            tokens = tokenizer.encode(text, space=start)
            if start and tokenizer.begins_with_space and not text:
                tokens = tokenizer.encode(" ", space=False)  # the space that is no part of the text
            assert tokenizer.decode(tokens, start=start) == text
            assert admits(grammar, tokens) is (text in good), (constraint, text)


@settings(max_examples=60)
@given(text=st.text(st.sampled_from("ab1é ."), max_size=5), expression=st.data())
def test_regular_expressions_match_as_in_python(
    vocabularies: dict[str, tuple[Tokenizer, Grammars]], text: str, expression: st.DataObject
) -> None:
    tokenizer, grammars = vocabularies["smollm"]
    atoms = st.sampled_from(["a", "b", "1", "é", r"\d", r"\w", ".", "[a-b]", "[^a]", r"\.", r"\s"])
    regex = expression.draw(
        st.recursive(
            atoms,
            lambda inner: st.one_of(
                st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
                st.lists(inner, min_size=1, max_size=3).map("".join),
                st.lists(inner, min_size=2, max_size=3).map(lambda p: "(?:" + "|".join(p) + ")"),
            ),
            max_leaves=5,
        )
    )
    grammar = grammars.compile(Constraint("regex", regex))
    whole = all(map(grammar.accept, tokenizer.encode(text))) and grammar.may_end
    assert whole is (re.fullmatch(regex, text) is not None)


CHAIN = {"$ref": "#/$defs/0", "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(5000)}}
REFUSED: list[tuple[Constraint, str]] = [
    (Constraint("schema", {"type": "array", "uniqueItems": True}), "uniqueItems"),
    (Constraint("schema", {"not": {}}), "not"),
    (Constraint("schema", {"type": "object", "propertyNames": {"pattern": "a"}}), "propertyNames"),
    (Constraint("schema", {"if": {}, "then": {}}), "if"),
    (Constraint("schema", {"oneOf": [{"type": "number"}, {"type": "integer"}]}), "oneOf"),
    (Constraint("schema", {"type": "string", "format": "nosuch"}), "nosuch"),
    (Constraint("schema", {"type": "string", "pattern": "(?=a)"}), "look-around"),
    (Constraint("schema", {"type": "integer", "minimum": "1"}), "minimum"),
    (Constraint("schema", {"type": "integer", "minimum": 2, "maximum": 1}), "minimum"),
    (Constraint("schema", {"$ref": "https://example.com/schema"}), "example.com"),
    (Constraint("schema", {"type": "object", "x-guidance": {"lenient": True}}), "x-guidance"),
    (Constraint("schema", 5), "expected a JSON Schema"),
    (Constraint("schema", {"enum": [float("nan")]}), "no JSON"),
    (Constraint("schema", {"enum": ["\ud800"]}), "no JSON"),
    (Constraint("regex", "(a"), "unclosed group"),
    (Constraint("regex", "(?=a)"), "look-around"),
    (Constraint("regex", r"(a)\1"), "backreferences"),
    (Constraint("regex", "\ud800"), "surrogate"),
    (Constraint("regex", 1), "expected text"),
    (Constraint("choice", []), "at least one"),
    (Constraint("choice", "abc"), "list of strings"),
    (Constraint("choice", ["a", 1]), "expected text"),
    (Constraint("regex", r"[^\s\S]"), "no answer can match it: its rules"),
    (Constraint("lark", "start: start"), "no answer can match it: its rules"),
    (Constraint("lark", "foo"), "Expected token"),
    (Constraint("lark", "start: @nosuch"), "nosuch"),
    (Constraint("lark", "start: <|nosuch|>"), "special token"),
    (Constraint("schema", {"items": [{"type": "integer"}]}), "write it as prefixItems"),
    (Constraint("schema", {"properties": {"a": {"exclusiveMinimum": True}}}), "properties.a.exclusiveMinimum is true"),
    (Constraint("schema", {"anyOf": [{"divisibleBy": 2}]}), "anyOf.divisibleBy, of an older draft"),
    (
        Constraint("lark", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "a"'),
        "3002 rules and groups",
    ),
    (Constraint("schema", CHAIN), "references"),
    (Constraint("nosuch"), "no constraint 'nosuch'"),  # type: ignore[arg-type]
    (Constraint("regex", "a" * module.MAX_SOURCE), "at most"),
]


@pytest.mark.parametrize(("constraint", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_enforced_is_refused(
    vocabularies: dict[str, tuple[Tokenizer, Grammars]], constraint: Constraint, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        vocabularies["smollm"][1].compile(constraint)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 500


def test_failing_later_is_an_error_and_not_an_end(
    vocabularies: dict[str, tuple[Tokenizer, Grammars]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llguidance's mask after a failure allows the end of the answer; it must not be taken for one."""
    from llguidance import LLParserLimits

    tokenizer, _ = vocabularies["smollm"]
    monkeypatch.setattr(module, "limits", lambda: LLParserLimits(verbose_errors=False, max_lexer_states=60))
    grammar = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids).compile(Constraint("regex", "(a|b){1,200}"))
    with pytest.raises(UsageError, match="cannot be enforced"):
        for _ in range(200):
            grammar.mask()
            assert grammar.accept(tokenizer.encode("a")[0])


def test_an_answer_that_nothing_can_follow(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    tokenizer, grammars = vocabularies["smollm"]
    grammar = grammars.compile(Constraint("lark", 'start: "a" NOTHING\nNOTHING: /b/ & /c/'))
    assert grammar.accept(tokenizer.encode("a")[0])
    with pytest.raises(UsageError, match="cannot be enforced: no text can follow what the answer has so far"):
        grammar.mask()


def test_long_repetitions_cost_nothing(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    tokenizer, grammars = vocabularies["smollm"]
    grammar = grammars.compile(Constraint("regex", "a{1000000}"))
    for _ in range(20):
        assert allowed(grammar) and grammar.accept(tokenizer.encode("a")[0])


def test_white_space_is_bounded(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    tokenizer, grammars = vocabularies["smollm"]
    for spaces, fine in [(33, True), (34, False)]:
        grammar = grammars.compile(Constraint("json"))
        assert admits(grammar, tokenizer.encode("{" + " " * spaces + "}")) is fine


def test_control_tokens_are_never_text(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    for tokenizer, grammars in vocabularies.values():
        grammar = grammars.compile(Constraint("regex", r"(?s:.*)"), start=False)
        assert allowed(grammar) & tokenizer.special_ids == tokenizer.stop_ids


def test_copies_and_rollback_go_their_own_ways(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    tokenizer, grammars = vocabularies["smollm"]
    grammar = grammars.compile(Constraint("json"))
    tokens = tokenizer.encode('{"a": 1}')
    before = grammar.mask()
    other = grammar.copy()
    assert all(map(grammar.accept, tokens)) and grammar.complete
    assert other.mask() == before and not other.may_end
    grammar.rollback(len(tokens))
    assert grammar.mask() == before and not grammar.complete
    assert not grammar.accept(tokenizer.encode("x")[0]) and grammar.mask() == before


def test_a_model_with_more_rows_than_tokens(smollm: Tokenizer) -> None:
    vocab = smollm.vocab_size + 77
    grammar = Grammars(smollm, vocab, smollm.stop_ids).compile(Constraint("json"))
    assert len(grammar.mask()) == -(-vocab // 32) * 4 and max(allowed(grammar)) < smollm.vocab_size


def test_an_answer_that_nothing_ends(smollm: Tokenizer) -> None:
    grammar = Grammars(smollm, smollm.vocab_size, frozenset()).compile(Constraint("choice", ["a"]))
    assert grammar.accept(smollm.encode("a")[0]) and grammar.complete and grammar.end_tokens == frozenset()


def test_compiled_grammars_are_kept_and_bounded(smollm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 2)
    grammars = Grammars(smollm, smollm.vocab_size, smollm.stop_ids)
    compiled: list[Any] = []
    monkeypatch.setattr(
        grammars, "_compile", lambda source: (compiled.append(source), Grammars._compile(grammars, source))[1]
    )
    for word in ["a", "b", "a", "c", "a", "b"]:
        grammars.compile(Constraint("choice", [word]))
    assert len(compiled) == 4 and len(grammars._compiled) == 2


def test_parts_of_a_composite(vocabularies: dict[str, tuple[Tokenizer, Grammars]]) -> None:
    parts = {"one": Constraint("schema", {"const": 1}), "two": Constraint("choice", ["x"])}
    form = Composite('start: begin "[" @one "]" @two', parts)
    for tokenizer, grammars in vocabularies.values():
        assert admits(grammars.compile(form), tokenizer.encode("[1]x"))
