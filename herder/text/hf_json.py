"""Hugging Face `tokenizer.json` (and the files beside it) -> Tokenizer.

Two families are read, both BPE: byte-level (Llama 3, SmolLM2, ...) and SentencePiece vocabularies as transformers
converts them (Llama 2, Mistral, ...). The library's own normalizer and pre-tokenizer do the cutting of the first; its
"added tokens" are taken out: the special ones become control tokens, the others match in any text.
Beside it: tokenizer_config.json (bos_token, eos_token, add_bos_token, ...) and generation_config.json (eos_token_id).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import Encode, Merge, build, encoder, fitting
from herder.text.tokenizer import SPACE, TURN_ENDS, Kind, Prefix, Special, Spelling, Tokenizer, Vocabulary, disguised

MAX_FILE = 256 << 20  # bytes; Llama 4's has 28 MB
Json = dict[str, Any]


def hf_tokenizer(path: Path) -> Tokenizer:
    """path: tokenizer.json. Raises UnsupportedModel, by name, for what is not read here; ModelFileError for damage."""
    try:
        return _tokenizer(_json(path), path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError | UnsupportedModel):
            raise
        raise ModelFileError(f"{path} is not a tokenizer, or is damaged: {type(error).__name__} {error}") from error


def _tokenizer(data: Json, path: Path) -> Tokenizer:
    model = data["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UnsupportedModel(f"{path} is a tokenizer of kind {kind}: only BPE is read")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedModel(f"{path} sets {option}, which no Llama vocabulary does and which is not read here")

    vocabulary, apart = _vocabulary(data, path)
    words = {token: i for token, i in model["vocab"].items() if token not in apart}
    unknown = model.get("unk_token")
    if unknown is not None:
        words[unknown] = model["vocab"][unknown]
    core = build(
        words,
        fitting(list(_merges(model["merges"])), words, apart),
        unk_token=unknown,
        fuse_unk=bool(model.get("fuse_unk")),
        byte_fallback=bool(model.get("byte_fallback")),
        ignore_merges=bool(model.get("ignore_merges")),
    )
    if vocabulary.spelling is Spelling.ALPHABET:
        name, encode, prefix = "bpe", _byte_level(core, data, path), Prefix.NEVER
        exact = data.get("normalizer") is None
    else:
        name, encode, prefix = "spm", encoder(core), _prefix(data, path)
        exact = bool(model.get("byte_fallback"))
    special = _special(data, vocabulary, unknown, path)
    return Tokenizer(name, vocabulary, encode, special, prefix=prefix, exact=exact)


def _vocabulary(data: Json, path: Path) -> tuple[Vocabulary, set[str]]:
    """The vocabulary, and the tokens that text is not merged into."""
    model = data["model"]
    ids: dict[str, int] = dict(model["vocab"])
    kinds: dict[int, Kind] = {}
    for token in data.get("added_tokens") or ():
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise UnsupportedModel(f"{path} has {flag} on {token['content']!r}: such tokens are not read here")
        if ids.setdefault(token["content"], token["id"]) != token["id"]:
            raise ModelFileError(f"{path} gives {token['content']!r} two ids")
        kinds[token["id"]] = Kind.CONTROL if token.get("special") else Kind.USER_DEFINED
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= 2 * len(ids) + 65536 or min(ids.values()) < 0:
        raise ModelFileError(f"{path} has {len(ids)} tokens but ids up to {size - 1}")
    spelling = _spelling(data, path)
    if spelling is Spelling.PIECES:
        kinds |= {i: Kind.BYTE for byte in range(256) if (i := ids.get(f"<0x{byte:02X}>")) is not None}
    if model.get("unk_token") is not None:
        kinds[ids[model["unk_token"]]] = Kind.UNKNOWN
    tokens = [b""] * size
    for token, i in ids.items():
        if tokens[i]:
            raise ModelFileError(f"{path} gives the id {i} to two tokens")
        tokens[i] = token.encode("utf-8", "surrogateescape")
    kinds |= disguised({token: i for i, token in enumerate(tokens) if token}, kinds, tokens)
    apart = {token for token, i in ids.items() if kinds.get(i) in (Kind.CONTROL, Kind.USER_DEFINED)}
    return Vocabulary(tokens, {token: i for i, token in enumerate(tokens) if token}, kinds, spelling), apart


def _merges(merges: list[Any]) -> Iterator[Merge]:
    """`"a b"` in older files, `["a", "b"]` in newer ones."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _spelling(data: Json, path: Path) -> Spelling:
    """What the decoder undoes."""
    kinds = {part["type"] for part in _parts(data.get("decoder"), "decoders")}
    if kinds == {"ByteLevel"}:
        return Spelling.ALPHABET
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return Spelling.PIECES
    raise UnsupportedModel(f"{path} decodes by {', '.join(sorted(kinds)) or 'nothing'}: not read here")


def _byte_level(core: Any, data: Json, path: Path) -> Encode:
    """The library's own normalizer and pre-tokenizer, around our model."""
    from tokenizers import Tokenizer as Library

    if any(part.get("add_prefix_space") for part in _parts(data.get("pre_tokenizer"), "pretokenizers")):
        raise UnsupportedModel(f"{path} puts a space before every text (add_prefix_space): not read here")
    shell = {key: data.get(key) for key in ("normalizer", "pre_tokenizer")}
    shell |= {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        around = Library.from_str(json.dumps(shell))
    except Exception as error:  # tokenizers raises plain Exception
        raise UnsupportedModel(f"{path} has a normalizer or pre-tokenizer that cannot be read: {error}") from error
    return encoder(core, pre_tokenizer=around.pre_tokenizer, normalizer=around.normalizer)


def _prefix(data: Json, path: Path) -> Prefix:
    """Where a converted SentencePiece vocabulary puts its space. Everything but escaping spaces is refused."""
    prefix = Prefix.NEVER
    for part in _parts(data.get("normalizer"), "normalizers"):
        if part == {"type": "Prepend", "prepend": SPACE}:
            prefix = Prefix.PIECE
        elif part != {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
            raise UnsupportedModel(f"{path} has the normalizer {part['type']}: not read here")
    for part in _parts(data.get("pre_tokenizer"), "pretokenizers"):
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space") else "never")
        if part["type"] != "Metaspace" or part.get("replacement") != SPACE or part.get("split", True):
            raise UnsupportedModel(f"{path} has the pre-tokenizer {part['type']} (split): not read here")
        prefix = {"always": Prefix.METASPACE, "first": Prefix.METASPACE_FIRST, "never": Prefix.NEVER}[scheme]
    return prefix


def _special(data: Json, vocabulary: Vocabulary, unknown: str | None, path: Path) -> Special:
    config = _json(path.with_name("tokenizer_config.json"), missing_ok=True)
    generation = _json(path.with_name("generation_config.json"), missing_ok=True)
    size = len(vocabulary.tokens)

    def token(name: str) -> int | None:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return None if text is None else vocabulary.ids.get(text.encode())

    bos, eos = token("bos_token"), token("eos_token")
    control = vocabulary.of(Kind.CONTROL)
    ends = generation.get("eos_token_id")
    stops = {eos, *([ends] if isinstance(ends, int) else ends or ())} - {None}
    if not all(isinstance(i, int) and 0 <= i < size for i in stops):
        raise ModelFileError(
            f"{path.with_name('generation_config.json')} has eos_token_id {ends}: not in the vocabulary"
        )
    before, after = _added(data)
    add_bos = config.get("add_bos_token")
    add_eos = config.get("add_eos_token")
    return Special(
        bos=bos,
        eos=eos,
        unknown=None if unknown is None else vocabulary.ids.get(unknown.encode()),
        pad=token("pad_token"),
        stops=frozenset(stops | {control[end] for end in TURN_ENDS if end in control}),
        add_bos=bos is not None and (add_bos if isinstance(add_bos, bool) else bos in before),
        add_eos=eos is not None and (add_eos if isinstance(add_eos, bool) else eos in after),
    )


def _added(data: Json) -> tuple[set[int], set[int]]:
    """The ids that the post-processor puts before and after a text."""
    before: set[int] = set()
    after: set[int] = set()
    for part in _parts(data.get("post_processor"), "processors"):
        seen_text = False
        for item in part.get("single") or ():
            if "SpecialToken" in item:
                ids = part["special_tokens"][item["SpecialToken"]["id"]]["ids"]
                (after if seen_text else before).update(ids)
            else:
                seen_text = True
    return before, after


def _parts(step: Json | None, inner: str) -> list[Json]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, sequences flattened."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [part for sub in step[inner] for part in _parts(sub, inner)]
    return [step]


def _json(path: Path, *, missing_ok: bool = False) -> Json:
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise ModelFileError(f"{path} has {size} bytes: at most {MAX_FILE} are read")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path} is not a JSON object")
    return data
