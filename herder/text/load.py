"""load_tokenizer: whatever holds a vocabulary -> Tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herder.core.errors import ModelFileError, ModelNotFound, UsageError
from herder.text.tokenizer import Tokenizer

NAMES = ("tokenizer.json", "tokenizer.model", "tekken.json")  # looked for in a directory, in this order
VERSIONED = "tokenizer.model.v*"  # Mistral's, beside params.json; a tokenizer.model without a version may be older
_HEAD = 4096  # bytes that tell the formats apart


def load_tokenizer(source: Mapping[str, Any] | Path) -> Tokenizer:
    """source: the metadata of a GGUF file; a directory with one of `NAMES`; or one such file, under any name.

    Raises ModelNotFound when there is none, UnsupportedModel for a kind not read here, ModelFileError for damage.
    """
    if isinstance(source, Mapping):
        from herder.text.gguf_vocab import gguf_tokenizer

        return gguf_tokenizer(source)
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob(VERSIONED)) if not (path / "tokenizer.json").is_file() else []
        if len(found) > 1:
            raise ModelFileError(f"{path} holds {found[0].name} and {found[1].name}: leave only the model's own there")
        found += [path / name for name in NAMES if (path / name).is_file()]
        above = path.parent / "tokenizer.model"
        if not found and (path / "params.json").is_file() and above.is_file():
            found = [above]  # Meta's download of Llama 1 and 2: one for the folders of all sizes
        if not found:
            raise ModelNotFound(f"{path} holds no tokenizer: none of {', '.join(NAMES)} is there")
        path = found[0]
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
    return _file(path, head)


def _file(path: Path, head: bytes) -> Tokenizer:
    if head.startswith(b"GGUF"):
        raise UsageError(f"{path} is a GGUF file: pass its metadata (herder.weights.source.open_model)")
    if head.lstrip().startswith(b"{"):
        if path.name.startswith("tekken") or b'"token_bytes"' in head:
            from herder.text.tekken import tekken_tokenizer

            return tekken_tokenizer(path)
        from herder.text.hf_json import hf_tokenizer

        return hf_tokenizer(path)
    from herder.text.tiktoken import is_tiktoken, tiktoken_tokenizer

    if is_tiktoken(head):
        return tiktoken_tokenizer(path)
    if not head:
        raise ModelFileError(f"{path} is empty")
    from herder.text.sentencepiece import sentencepiece_tokenizer

    return sentencepiece_tokenizer(path)
