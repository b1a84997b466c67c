"""Constraint -> Grammar: what an answer must be, compiled by llguidance for one vocabulary into masks over its tokens.

A schema, a regular expression, a list of choices or a grammar is taken whole or refused: a keyword that llguidance does
not enforce is an error here and is never ignored.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from herder.core.errors import UsageError
from herder.core.request import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from herder.text.tokenizer import Tokenizer

MAX_SOURCE = 1 << 20  # characters of a constraint, written as JSON
# llguidance follows references by recursion, and a chain of some thousands ends the process: its stack overflows.
MAX_RULES = 1000  # of a grammar, its groups among them: a rule may be as deep as both together
MAX_DEPTH = 1000  # of a schema: of its objects, times the references that may follow one another
CACHED = 128  # compiled grammars that are kept
# Between two signs of JSON stands white space only so long, so that a small model cannot lose itself in it for ever:
# a line break and sixteen levels of two spaces.
_JSON: JsonCompileOptions = {"whitespace_pattern": r"[ \t\n\r]{1,33}", "lenient": False, "coerce_one_of": False}
# Forcing would let the grammar choose the tokens of a text that is fixed. Without it a mask depends on nothing but the
# bytes so far, no Python runs inside llguidance, and a fixed text of a megabyte costs nothing.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_WHY = "its rules exclude each other, or one of them never ends"
_STUCK = "NoExtensionBias"  # llguidance's whole message where no token may come next and the answer is not whole


@dataclass(frozen=True, slots=True)
class Composite:
    """A grammar in Lark, in which @name stands for the constraint of that name: calls of tools and the like. The rule
    `begin`, which need not be written, stands where the answer's text begins (see Grammars.compile)."""

    lark: str
    parts: Mapping[str, Constraint]


class Grammars:
    """Compiles constraints for one model; threads may share it.

    vocab: the model's, which a mask covers (its embedding may have more rows than the tokenizer has tokens).
    ends: the tokens that end an answer.
    The vocabulary is handed to llguidance when the first constraint is compiled, which takes about 0.3 s for 49,152
    tokens and 1 s for 128,256.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._ends = frozenset(token for token in ends if token < vocab)
        self._bridge: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint | Composite, *, start: bool = True) -> TokenGrammar:
        """The grammar of one answer, at its beginning.

        start: the answer is a text of its own, to which a SentencePiece vocabulary writes a space first that is no part
        of the text (see Tokenizer.decode). Raises UsageError, one line, for what cannot be compiled, and where
        llguidance is not installed.
        """
        source = _source(constraint, spaced=start and self._tokenizer.begins_with_space)
        with self._lock:
            matcher = self._compiled.get(source)
            if matcher is not None:
                self._compiled.move_to_end(source)
                return TokenGrammar(matcher.deep_copy(), self._vocab, self._ends)
        matcher = self._compile(source)  # without the lock: nobody waits for somebody else's large schema
        with self._lock:
            self._compiled[source] = matcher
            if len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
            return TokenGrammar(matcher.deep_copy(), self._vocab, self._ends)

    def _compile(self, source: str) -> LLMatcher:
        from llguidance import LLMatcher

        with self._lock:
            if self._bridge is None:
                self._bridge = bridge(self._tokenizer, self._vocab, self._ends)
        matcher = LLMatcher(self._bridge, source, log_level=0, limits=limits())
        _check(matcher)
        matcher.compute_bitmask()  # the first one, on which all copies build: what fails at once, fails here
        _check(matcher, f"no answer can match it: {_WHY}")
        return matcher


class TokenGrammar:
    """A core.request.Grammar: one answer's way through a compiled constraint."""

    def __init__(self, matcher: LLMatcher, vocab: int, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self.end_tokens = ends

    def copy(self) -> TokenGrammar:
        return TokenGrammar(self._matcher.deep_copy(), self._vocab, self.end_tokens)

    def mask(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        _check(self._matcher)  # after a failure the mask would allow the end, whatever the answer is
        size = 4 * -(-self._vocab // 32)
        return mask[:size].ljust(size, b"\0")

    def accept(self, token: int) -> bool:
        accepted = bool(self._matcher.try_consume_tokens([token]) == 1)
        _check(self._matcher)
        return accepted

    def rollback(self, tokens: int) -> None:
        if not self._matcher.rollback(tokens):
            _check(self._matcher)
            raise AssertionError(f"{tokens} tokens could not be taken back")

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether what came so far is whole."""
        return bool(self._matcher.is_accepting())


class _Vocabulary:
    """What llguidance wants to know of a vocabulary (its TokenizerWrapper)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab)
        tokens = [tokenizer.token_bytes(token) for token in range(min(vocab, tokenizer.vocab_size))]
        if tokenizer.begins_with_space:
            # SentencePiece has a space both as a piece and as a byte, but only the piece's is taken away again at the
            # beginning of a text. Nothing is lost without the other: it is in no text that a model has learnt.
            space = tokenizer.id_of("<0x20>")
            tokens = [b"" if token == space else raw for token, raw in enumerate(tokens)]
        # llguidance takes the byte 0xFF in front for its mark of special tokens; no text has such a token either.
        self.tokens = [
            b"" if raw.startswith(b"\xff") and not tokenizer.is_control(token) else raw
            for token, raw in enumerate(tokens)
        ]
        self.tokens += [b""] * (vocab - len(tokens))
        # One past the vocabulary for a model whose answers nothing ends: it is in no mask.
        self.eos_token_id = min(ends) if ends else None

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, start=False, space=False)


def bridge(tokenizer: Tokenizer, vocab: int, ends: frozenset[int]) -> LLTokenizer:
    """The vocabulary as llguidance wants it: the bytes of each token, control tokens apart, the tokens that end."""
    from llguidance import LLTokenizer

    described: Any = _Vocabulary(tokenizer, vocab, ends)
    return LLTokenizer(described, eos_token=sorted(ends) if ends else None)


def limits() -> LLParserLimits:
    """llguidance's own, which keep a step below 20 ms; its grammars' states are left out of messages."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def _check(matcher: LLMatcher, stuck: str = f"no text can follow what the answer has so far: {_WHY}") -> None:
    """stuck: what is said where no token may come next and the answer is not whole."""
    if matcher.is_error():
        reason = _one_line(matcher.get_error())
        raise UsageError(f"the constraint cannot be enforced: {stuck if reason == _STUCK else reason}")


def _one_line(message: str) -> str:
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]


# Sources -------------------------------------------------------------------------------------------------------------
def _source(constraint: Constraint | Composite, spaced: bool) -> str:
    """The constraint as llguidance's list of grammars, of which the first is the whole."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise UsageError("a constraint on the answer needs llguidance: pip install 'herder[serve]'") from None
    begin = '" "' if spaced else '""'
    if isinstance(constraint, Composite):
        grammars: list[dict[str, Any]] = [{"lark_grammar": f"{_OPTIONS}{constraint.lark}\nbegin: {begin}\n"}]
        grammars += [grammar_of(part) | {"name": name} for name, part in constraint.parts.items()]
    else:
        grammars = [
            {"lark_grammar": f"{_OPTIONS}start: {begin} @answer\n"},
            grammar_of(constraint) | {"name": "answer"},
        ]
    source = json.dumps({"grammars": grammars})
    if len(source) > MAX_SOURCE:
        raise UsageError(f"the constraint has {len(source)} characters: at most {MAX_SOURCE} are compiled")
    return source


def _check_depth(schema: Mapping[str, Any]) -> None:
    """Refuses a schema that could be followed deeper than MAX_DEPTH."""
    targets: set[str] = set()
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += any(isinstance(one, Mapping) for one in level)
        targets.update(str(one["$ref"]) for one in level if isinstance(one, Mapping) and "$ref" in one)
        if depth * max(1, len(targets)) > MAX_DEPTH:
            raise UsageError(
                f"the schema is {depth} deep and has {len(targets)} references or more: at most {MAX_DEPTH} in all"
            )
        inner = (list(one.values()) if isinstance(one, Mapping) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, Mapping | list | tuple)]


def grammar_of(constraint: Constraint) -> dict[str, Any]:
    """One entry of llguidance's list. Raises UsageError for a value that its kind cannot have."""
    from llguidance import LLMatcher

    kind, value = constraint.kind, constraint.value
    match kind:
        case "json":
            return grammar_of(Constraint("schema", {"type": "object"}))
        case "schema":
            if not isinstance(value, Mapping):
                raise UsageError(f"the schema is {value!r:.80}: expected a JSON Schema, an object")
            if "x-guidance" in value:
                raise UsageError("the schema has x-guidance, which is not taken: leave it out")
            _check_draft(value)
            _check_depth(value)
            try:
                written = LLMatcher.grammar_from_json_schema(json.dumps(dict(value), allow_nan=False), overrides=_JSON)
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"the schema is no JSON: {_one_line(str(error))}") from None
        case "regex":
            written = LLMatcher.grammar_from_regex(_text(value, "regex"))
        case "lark":
            text = _text(value, "grammar")
            if (levels := sum(map(text.count, ":(["))) > MAX_RULES:
                raise UsageError(
                    f"the grammar has {levels} rules and groups (signs : ( [): at most {MAX_RULES} are taken"
                )
            return {"lark_grammar": text}
        case "choice":
            return {"lark_grammar": f"start: CHOICE\nCHOICE: {' | '.join(map(literal, _choices(value)))}"}
        case _:
            raise UsageError(f"there is no constraint {kind!r}: known are json, schema, regex, choice and lark")
    found: dict[str, Any] = json.loads(written)["grammars"][0]
    return found


# Where the values of a keyword are schemas themselves: one, a list of them, or one for each name.
ONE = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains", "propertyNames")
LISTS = ("prefixItems", "allOf", "anyOf", "oneOf")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
OLD = {"additionalItems": "items", "divisibleBy": "multipleOf", "disallow": "not", "extends": "allOf"}


def _check_draft(schema: Mapping[str, Any]) -> None:
    """Raises UsageError for what older drafts of JSON Schema say otherwise than the present one: llguidance takes these
    for annotations, and the answer would not be held to them."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        where, one = waiting.pop()
        if not isinstance(one, Mapping):
            continue
        for old, new in OLD.items():
            if old in one:
                raise UsageError(f"the schema has {where}{old}, of an older draft: write it with {new}")
        if isinstance(one.get("items"), list | tuple):
            raise UsageError(f"the schema has a list as {where}items, as in an older draft: write it as prefixItems")
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(one.get(bound), bool):
                raise UsageError(f"the schema's {where}{bound} is true or false, of an older draft: give the number")
        waiting += [(f"{where}{key}.", one[key]) for key in ONE if key in one]
        waiting += [(f"{where}{key}.", part) for key in LISTS if isinstance(one.get(key), list) for part in one[key]]
        for key in NAMED:
            if isinstance(one.get(key), Mapping):
                waiting += [(f"{where}{key}.{name}.", part) for name, part in one[key].items()]


def literal(text: str) -> str:
    """A text as a literal of Lark. Raises UsageError for a lone surrogate."""
    _text(text, "choice")
    return json.dumps(text)


def _choices(value: Any) -> list[str]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise UsageError(f"choice is {value!r:.80}: expected a list of strings")
    choices = list(dict.fromkeys(value))
    if not choices:
        raise UsageError("choice is empty: give at least one string")
    return choices


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r:.80}: expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds a lone surrogate: send valid UTF-8") from None
    return value
