"""The vocabulary of the tiny models: a byte-level BPE of 288 tokens, as a list, as GGUF keys and as tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    "Ġ t", "h e", "i n", "e r", "a n", "Ġ a", "Ġt he", "o n", "r e", "Ġ s", "e n", "Ġ w", "i s", "o r", "Ġ c", "a t",
    "n d", "Ġ b", "in g", "Ġ o", "e s", "Ġ f", "i t", "l l", "Ġa nd", "o u", "Ġ h", "Ġ p", "a l",
)  # fmt: skip
VOCAB = len(SPECIALS) + 256 + len(MERGES)  # 288
EOS = 2  # <|im_end|>


def byte_symbols() -> list[str]:
    """GPT-2's printable character of each byte: printable ones stand for themselves, the rest for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + rest.index(b)) for b in range(256)]


def vocabulary(size: int = VOCAB) -> tuple[list[str], list[int]]:
    """Tokens and GGUF types (1 normal, 3 control, 5 unused) of a byte-level BPE: specials, bytes, merges, filler."""
    tokens = [*SPECIALS, *byte_symbols(), *(merge.replace(" ", "") for merge in MERGES)]
    types = [3] * len(SPECIALS) + [1] * (256 + len(MERGES))
    assert size >= len(tokens), f"the tiny vocabulary has {len(tokens)} tokens"
    filler = size - len(tokens)
    return tokens + [f"<unused{i}>" for i in range(filler)], types + [5] * filler


def add_to_gguf(writer: gguf.GGUFWriter, size: int, chat_template: str | None, add_bos: bool) -> None:
    tokens, types = vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def write_tokenizer(directory: Path, size: int, chat_template: str | None) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, _ = vocabulary(size)
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[1],
        "eos_token": SPECIALS[2],
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    text = json.dumps(settings, indent=2)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
