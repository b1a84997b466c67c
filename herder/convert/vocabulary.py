"""A model's vocabulary as plain tables, from whichever file holds it: what the writers in tokenizer_files.py need.

Read are GGUF's `tokenizer.ggml.*`, Hugging Face's tokenizer.json, SentencePiece's and tiktoken's tokenizer.model. The
readers in herder.text check them first; what they accept and another file cannot say is refused here by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import merges_by_rank, spell
from herder.text.load import load_tokenizer
from herder.text.sentencepiece import fields
from herder.text.splits import GPT2, SPLITS
from herder.text.tiktoken import is_tiktoken, llama3_specials, llama4_specials, read_ranks
from herder.text.tokenizer import Kind, Prefix, Special
from herder.weights.source import ModelFiles

# GGUF's names for ways of cutting words, in the order in which equal ones are chosen.
_PREFERRED = ("llama-bpe", "llama4", "tekken", "smollm", "gpt-2", "qwen2", "smaug-bpe", "gpt-4o", "default")


@dataclass(frozen=True, slots=True)
class Words:
    """kind: `bpe` (byte-level, with merges, cut as `pre` names it) or `spm` (SentencePiece BPE, with scores).

    tokens: id -> spelling as in the files: bpe words in the byte alphabet, spm pieces with U+2581; empty: no token.
    merges: "a b", best first. space: whether a text gets a space at its beginning (spm).
    """

    kind: Literal["bpe", "spm"]
    tokens: list[bytes]
    kinds: dict[int, Kind]
    special: Special
    merges: list[str] = field(default_factory=list)
    pre: str = ""
    scores: list[float] = field(default_factory=list)
    space: bool = False


def read_words(files: ModelFiles) -> Words:
    """The vocabulary of an open model; BOS, EOS and stop tokens as the model's files say. Raises UnsupportedModel for
    one that cannot be written anywhere else."""
    special = load_tokenizer(files.metadata if files.kind == "gguf" else files.path).special
    if files.bos is not None:
        special = replace(special, bos=files.bos)
    if files.eos is not None:
        special = replace(special, eos=files.eos, stops=files.stop_token_ids)
    if files.kind == "gguf":
        return _from_gguf(files.metadata, special)
    path = tokenizer_path(files.path)
    if path.name == "tokenizer.json":
        return _from_json(path, special)
    if path.suffix == ".json":
        raise UnsupportedModel(f"{path} (tekken) cannot be converted: use a repository with a tokenizer.json")
    with path.open("rb") as file:
        head = file.read(4096)
    return _from_tiktoken(path, special) if is_tiktoken(head) else _from_sentencepiece(path, special)


def tokenizer_path(directory: Path) -> Path:
    """The file that load_tokenizer takes, SentencePiece's own before its conversion: it has the scores."""
    model = directory / "tokenizer.model"
    if (directory / "tokenizer.json").is_file():
        return directory / "tokenizer.json"
    found = [model, *sorted(directory.glob("tokenizer.model.v*")), directory / "tekken.json"]
    return next(path for path in found if path.is_file())


def _from_gguf(metadata: Mapping[str, Any], special: Special) -> Words:
    def key(name: str) -> Any:
        return metadata.get("tokenizer.ggml." + name)

    tokens = [token.encode("utf-8", "surrogateescape") for token in key("tokens")]
    types = key("token_type")
    kinds = {i: Kind(kind) for i, kind in enumerate(types) if kind != 1} if types is not None else {}
    if key("model") == "gpt2":
        return Words("bpe", tokens, kinds, special, list(key("merges")), key("pre"))
    space = load_tokenizer(metadata).prefix is not Prefix.NEVER
    return Words("spm", tokens, kinds, special, scores=list(key("scores")), space=space)


def _from_tiktoken(path: Path, special: Special) -> Words:
    ranked = read_ranks(path)
    four = len(ranked) > 128_000
    names = llama4_specials() if four else llama3_specials()
    spelled = [spell(raw) for raw in ranked]
    merges = [" ".join(merge) for merge in merges_by_rank(spelled, dict.fromkeys(spelled))]
    kinds = dict.fromkeys(range(len(ranked), len(ranked) + len(names)), Kind.CONTROL)
    tokens = [*(token.encode() for token in spelled), *(name.encode() for name in names)]
    return Words("bpe", tokens, kinds, special, merges, "llama4" if four else "llama-bpe")


def _from_sentencepiece(path: Path, special: Special) -> Words:
    tokens: list[bytes] = []
    scores: list[float] = []
    kinds: dict[int, Kind] = {}
    space = True
    for number, value in fields(path.read_bytes()):
        if number == 1 and isinstance(value, bytes):
            piece: dict[int, Any] = dict(fields(value))
            if (kind := Kind(piece.get(3, 1))) != Kind.NORMAL:
                kinds[len(tokens)] = kind
            tokens.append(piece[1])
            scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
        elif number == 3 and isinstance(value, bytes):
            space = bool(dict(fields(value)).get(3, 1))
    return Words("spm", tokens, kinds, special, scores=scores, space=space)


def _from_json(path: Path, special: Special) -> Words:
    """load_tokenizer has read it before: its structure is known to be right."""
    data = json.loads(path.read_bytes())
    model = data["model"]
    ids: dict[str, int] = dict(model["vocab"])
    kinds: dict[int, Kind] = {}
    for token in data.get("added_tokens") or ():
        ids[token["content"]] = token["id"]
        kinds[token["id"]] = Kind.CONTROL if token.get("special") else Kind.USER_DEFINED
    tokens = [b""] * (max(ids.values()) + 1)
    for spelling, i in ids.items():
        tokens[i] = spelling.encode("utf-8", "surrogateescape")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if any(merge.count(" ") != 1 for merge in merges):
        raise UnsupportedModel(f"{path} has merges of tokens with spaces in them, which no other file can say")
    if not model.get("byte_fallback"):
        return Words("bpe", tokens, kinds, special, merges, _pre(path, data))
    for byte in range(256):
        if (token_id := ids.get(f"<0x{byte:02X}>")) is not None:
            kinds[token_id] = Kind.BYTE
    if model.get("unk_token") is not None:
        kinds[ids[model["unk_token"]]] = Kind.UNKNOWN
    scores = _scores(path, tokens, kinds, merges)
    space = load_tokenizer(path).prefix is not Prefix.NEVER
    return Words("spm", tokens, kinds, special, scores=scores, space=space)


def _scores(path: Path, tokens: Sequence[bytes], kinds: Mapping[int, Kind], merges: Sequence[str]) -> list[float]:
    """SentencePiece's scores: its own file's where it lies beside, else the order in which the merges make the tokens.

    Raises UnsupportedModel when scores cannot say the same as the merges: then two halves of a token are no merge, or
    the merges of one token do not follow each other.
    """
    beside = path.with_name("tokenizer.model")
    if beside.is_file():
        theirs = _from_sentencepiece(beside, Special())
        if theirs.tokens == list(tokens[: len(theirs.tokens)]):
            return theirs.scores + [0.0] * (len(tokens) - len(theirs.tokens))
    order: dict[str, int] = {}
    for merge in merges:
        order.setdefault(merge.replace(" ", ""), len(order))
    words = {t.decode("utf-8", "surrogateescape") for i, t in enumerate(tokens) if t and i not in kinds}
    if set(merges) != {" ".join(merge) for merge in merges_by_rank(order, dict.fromkeys(words))}:
        raise UnsupportedModel(
            f"{path} has merges that SentencePiece's scores cannot say: put its tokenizer.model beside"
        )
    return [-float(order.get(token.decode("utf-8", "surrogateescape"), 0)) for token in tokens]


def _pre(path: Path, data: Mapping[str, Any]) -> str:
    """GGUF's name of the way words are cut. Raises UnsupportedModel when there is none."""
    if data.get("normalizer") is not None:
        raise UnsupportedModel(f"{path} normalizes text ({data['normalizer'].get('type')}), which GGUF cannot say")
    patterns = tuple(_patterns(data.get("pre_tokenizer")))
    whole = bool(data["model"].get("ignore_merges"))
    for name in _PREFERRED:
        if SPLITS[name].patterns == patterns and SPLITS[name].ignore_merges == whole:
            return name
    raise UnsupportedModel(f"{path} cuts words by {' then '.join(patterns) or 'nothing'}, for which GGUF has no name")


def _patterns(step: Mapping[str, Any] | None) -> list[str]:
    """The patterns of a pre-tokenizer, in order; one that is not known gives its type, which no row of SPLITS has."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
    if step["type"] == "ByteLevel":
        return [GPT2] if step.get("use_regex", True) else []
    if step["type"] == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    regex = step.get("pattern", {}).get("Regex") if step["type"] == "Split" else None
    if regex is not None and step.get("behavior") == "Isolated" and not step.get("invert"):
        return [regex]
    return [step["type"]]


def check_size(where: str, words: Words, vocab: int) -> None:
    """Raises ModelFileError when there are more tokens than rows of the embedding."""
    if len(words.tokens) > vocab:
        raise ModelFileError(
            f"{where} has {len(words.tokens)} tokens, but its embedding {vocab} rows: tokens without weights cannot be "
            "written"
        )
