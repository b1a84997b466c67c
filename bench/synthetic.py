"""A GGUF of a model's shape with random weights: how fast a model runs does not depend on what it knows.

    python -m bench.synthetic llama-3.2-1b OUT.gguf [--format Q4_0] [--layers N]

With Q4_0 the embedding (and head) is Q6_K, as llama.cpp's own Q4_0 files of these models have it; the other formats are
used for every matrix. Weights have a standard deviation of 0.02, so activations stay finite: random bytes under scales,
or numbers of a pool. The tokenizer is a byte-level one without merges: some programs load no file that has none. Needs
the packages `gguf` and `numpy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

STD = 0.02

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Shape:
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab: int
    context: int
    theta: float
    tied: bool = True  # the embedding is the head, too


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 131072, 5e5, tied=False),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5),
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, 8192, 1e5),
}


def q4_0(rng: np.random.Generator, rows: int, cols: int) -> Bytes:
    """(rows, bytes of a row): blocks of an f16 scale and 32 nibbles, value = scale * (nibble - 8)."""
    blocks = rng.integers(0, 256, (rows * cols // 32, 18), np.uint8)
    scale = STD / np.sqrt((16**2 - 1) / 12)
    scales = (scale * rng.uniform(0.8, 1.2, len(blocks))).astype(np.float16)
    blocks[:, :2] = scales[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def q6_k(rng: np.random.Generator, rows: int, cols: int) -> Bytes:
    """(rows, bytes of a row): 256 six-bit values, 16 int8 scales and an f16 scale, value = d * scale * (q - 32)."""
    blocks = rng.integers(0, 256, (rows * cols // 256, 210), np.uint8)
    blocks[:, 192:208] = rng.integers(96, 128, (len(blocks), 16), np.uint8)
    d = STD / (112 * np.sqrt((64**2 - 1) / 12))
    blocks[:, 208:] = np.full((len(blocks), 1), d, np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def byte_characters() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as: printable ones as they are, the others from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    names = [f"<|{i}|>" for i in range(vocab - 256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(byte_characters() + names)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(names))
    writer.add_token_merges(["a b"])  # readers refuse an empty list
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)


def q8_0(rng: np.random.Generator, rows: int, cols: int) -> Bytes:
    """(rows, bytes of a row): blocks of an f16 scale and 32 int8, value = scale * int8."""
    blocks = rng.integers(0, 256, (rows * cols // 32, 34), np.uint8)
    blocks[:, :2] = np.full((len(blocks), 1), STD / np.sqrt((256**2 - 1) / 12), np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def f16(rng: np.random.Generator, rows: int, cols: int) -> Bytes:
    """(rows, bytes of a row) of float16."""
    pool = rng.normal(0, STD, 1 << 16).astype(np.float16)
    words: Bytes = pool[rng.integers(0, 1 << 16, rows * cols, np.uint16)].view(np.uint8).reshape(rows, -1)
    return words


def bf16(rng: np.random.Generator, rows: int, cols: int) -> Bytes:
    """(rows, bytes of a row) of bfloat16, the upper half of a float32."""
    pool = (rng.normal(0, STD, 1 << 16).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    words: Bytes = pool[rng.integers(0, 1 << 16, rows * cols, np.uint16)].view(np.uint8).reshape(rows, -1)
    return words


FORMATS: dict[str, tuple[Callable[[np.random.Generator, int, int], Bytes], gguf.LlamaFileType]] = {
    "Q4_0": (q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "Q8_0": (q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "F16": (f16, gguf.LlamaFileType.MOSTLY_F16),
    "BF16": (bf16, gguf.LlamaFileType.MOSTLY_BF16),
}


def write(path: Path, name: str, shape: Shape, form: str = "Q4_0") -> None:
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"{name}, random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_dim)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(shape.vocab)
    make, file_type = FORMATS[form]
    writer.add_file_type(file_type)
    add_tokenizer(writer, shape.vocab)

    def matrix(name: str, rows: int, cols: int) -> None:
        writer.add_tensor(name, make(rng, rows, cols), raw_dtype=gguf.GGMLQuantizationType[form])

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.dim, np.float32))

    for tensor in ["token_embd.weight"] if shape.tied else ["token_embd.weight", "output.weight"]:
        if form == "Q4_0" and shape.dim % 256 == 0:
            embedding = q6_k(rng, shape.vocab, shape.dim)
            writer.add_tensor(tensor, embedding, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
        else:
            matrix(tensor, shape.vocab, shape.dim)
    ones("output_norm.weight")
    for i in range(shape.layers):
        ones(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", shape.heads * shape.head_dim, shape.dim)
        matrix(f"blk.{i}.attn_k.weight", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(f"blk.{i}.attn_v.weight", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(f"blk.{i}.attn_output.weight", shape.dim, shape.heads * shape.head_dim)
        ones(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", shape.ffn_dim, shape.dim)
        matrix(f"blk.{i}.ffn_up.weight", shape.ffn_dim, shape.dim)
        matrix(f"blk.{i}.ffn_down.weight", shape.dim, shape.ffn_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="Q4_0")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a quick try")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers:
        shape = Shape(**{**vars(shape), "layers": args.layers})
    write(args.out, args.shape, shape, args.format)


if __name__ == "__main__":
    main()
