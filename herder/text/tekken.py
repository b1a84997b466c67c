"""Mistral's `tekken.json` -> Tokenizer.

`config`: pattern, default_vocab_size, default_num_special_tokens, version. `vocab`: rank and base64 bytes of each
token; the first default_vocab_size - default_num_special_tokens of them count. Special tokens come first: their ids are
their ranks, and every other token's id is its rank plus default_num_special_tokens. Files of version v7 and older do
not list them. Source: mistral-common's tokens/tokenizers/tekken.py.
"""

from __future__ import annotations

import binascii
import json
from pathlib import Path
from typing import Any

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.splits import Split, split_named
from herder.text.tiktoken import rank_tokenizer
from herder.text.tokenizer import Kind, Special, Tokenizer

MAX_FILE = 128 << 20  # bytes; the largest known has 19 MB
_UNLISTED = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_VERSIONS_WITHOUT_LIST = ("v3", "v7")


def tekken_tokenizer(path: Path) -> Tokenizer:
    """Raises ModelFileError for a damaged file, UnsupportedModel for a word pattern that is not tekken's."""
    if path.stat().st_size > MAX_FILE:
        raise ModelFileError(f"{path} has {path.stat().st_size} bytes: a tekken file has at most {MAX_FILE}")
    try:
        return _tokenizer(json.loads(path.read_bytes()), path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError | UnsupportedModel):
            raise
        raise ModelFileError(f"{path} is not a tekken file, or is damaged: {error}") from error


def _tokenizer(data: dict[str, Any], path: Path) -> Tokenizer:
    config = data["config"]
    split = split_named("tekken")
    if (config["pattern"],) != split.patterns:
        raise UnsupportedModel(f"{path} cuts words by a pattern of its own: {config['pattern'][:60]!r}")
    count = int(config["default_num_special_tokens"])
    size = int(config["default_vocab_size"]) - count
    listed = data.get("special_tokens")
    if listed is None:
        if config["version"] not in _VERSIONS_WITHOUT_LIST:
            raise ModelFileError(f"{path} is of version {config['version']} but lists no special tokens")
        listed = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(_UNLISTED)]
    names = {int(token["rank"]): str(token["token_str"]) for token in listed}
    if not 0 < size <= len(data["vocab"]) or not names.keys() <= set(range(count)) or count > 1 << 16:
        raise ModelFileError(f"{path} is damaged: {len(data['vocab'])} tokens and {len(names)} special ones do not fit")
    names = {i: names.get(i, f"<SPECIAL_{i}>") for i in range(count)}
    ranked = [binascii.a2b_base64(token["token_bytes"]) for token in data["vocab"][:size]]
    if [token["rank"] for token in data["vocab"][:size]] != list(range(size)):
        raise ModelFileError(f"{path} is damaged: its tokens are not in order of rank")
    ids = {name: i for i, name in names.items()}
    return rank_tokenizer(
        "tekken",
        Split(split.patterns, ignore_merges=True),
        ranked,
        [*(names[i].encode() for i in range(count)), *ranked],
        dict.fromkeys(range(count), Kind.CONTROL),
        Special(
            bos=ids.get("<s>"),
            eos=ids.get("</s>"),
            unknown=ids.get("<unk>"),
            pad=ids.get("<pad>"),
            stops=frozenset({ids["</s>"]} if "</s>" in ids else ()),
            add_bos=True,
        ),
        first=count,
        version=str(config["version"]),
    )
