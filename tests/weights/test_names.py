"""Roles against the C ABI, names against gguf's own table, row order against RoPE itself."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from herder.weights import names
from herder.weights.names import Place, Role
from tests.tiny_moe import interleave

HEADER = Path(__file__).parents[2] / "native" / "include" / "herder.h"


def test_roles_are_those_of_the_c_abi() -> None:
    """Up to SHARED_DOWN; the roles above it only the Python side knows."""
    enum = re.search(r"typedef enum hd_role \{(.*?)\}", HEADER.read_text(), re.S)
    assert enum is not None
    ours = {role.name: role.value for role in Role if role <= Role.SHARED_DOWN}
    assert {n: int(v) for n, v in re.findall(r"HD_(\w+) = (\d+)", enum[1])} == ours
    assert [role.value for role in Role] == list(range(len(Role)))


# What gguf's table of Llama 4 calls canonical modules that are not Hugging Face's own.
THEIRS = {
    "mlp.router": "feed_forward.router",
    "mlp.experts.5": "feed_forward.experts",
    "mlp.shared": "feed_forward.shared",
}


@pytest.mark.parametrize("role", [role for role in Role if role <= Role.SHARED_DOWN], ids=lambda role: role.name)
def test_names_agree_with_ggufs_table_and_come_back(role: Role) -> None:
    canonical, ours = names.canonical_name(role, 3, 5), names.gguf_name(role, 3)
    stem, kind = canonical.rsplit(".", 1)
    for module, theirs in THEIRS.items():
        stem = stem.replace(module, theirs)
    assert ours == f"{gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA4, 5).get_name(stem)}.{kind}"
    layer, expert = 3 if role in names.PER_LAYER else 0, 5 if role in names.EXPERTS else 0
    assert names.parse_name(canonical) == Place(role, layer, expert)
    assert names.parse_name(ours) == Place(role, layer, names.STACKED if expert else 0)
    assert names.ignored(canonical) is None


@pytest.mark.parametrize("role", sorted({Role.Q_NORM, Role.K_NORM, Role.ATTN_GATE, Role.FFN_GATE} | names.ATTENTION))
def test_names_of_cross_attention_layers_come_back(role: Role) -> None:
    cross = role in names.ATTENTION
    canonical = names.canonical_name(role, 8, cross=cross)
    assert canonical.startswith("model.layers.8.cross_attn")
    assert names.parse_name(canonical) == Place(role, 8, cross=cross)


def test_the_image_encoder_and_roles_without_a_gguf_name_have_none() -> None:
    with pytest.raises(KeyError):
        names.canonical_name(Role.VISION)
    with pytest.raises(KeyError):
        names.gguf_name(Role.Q_NORM)


def test_layers_and_experts_of_many_digits() -> None:
    assert names.parse_name("blk.125.attn_q.weight") == Place(Role.WQ, 125)
    assert names.parse_name("model.layers.0.mlp.up_proj.weight") == Place(Role.W_UP, 0)
    assert names.parse_name("blk.7.ffn_down.127.weight") == Place(Role.EXPERT_DOWN, 7, 127)
    assert names.parse_name("model.layers.47.mlp.experts.127.up_proj.weight") == Place(Role.EXPERT_UP, 47, 127)


@pytest.mark.parametrize(
    "name",
    [
        "", "blk.3.attn_q", "blk.03.attn_q.weight", "blk.-1.attn_q.weight", "blk..attn_q.weight",
        "blk.{}.attn_q.weight", "model.layers.{}.input_layernorm.weight", "blk.1.blk.1.attn_q.weight",
        "blk.1.token_embd.weight", "v.blk.1.attn_q.weight", "blk.99999999999999999999.attn_q.weight",
        "blk.1.ffn_gate_exps.bias", "model.layers.1.self_attn.q_norm.weight", "blk.1.ffn_gate.-1.weight",
        "model.layers.1.mlp.experts.gate_proj.weight", "model.layers.1.mlp.experts.{expert}.gate_proj.weight",
        "model.layers.1.cross_attn.q_proj.bias", "model.layers.1.mlp.experts.01.up_proj.weight", "blk.{}.attn_q.weight",
    ],
)  # fmt: skip
def test_what_is_not_a_name(name: str) -> None:
    assert names.parse_name(name) is None and names.ignored(name) is None


def test_what_carries_nothing_says_why() -> None:
    for name in (
        "model.layers.7.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "rope_freqs.weight",
        "rope_factors_long.weight",
    ):
        assert names.parse_name(name) is None
        assert names.ignored(name)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (4, 16), (3, 64), (9, 6)])
def test_the_row_map_undoes_the_converter(heads: int, head_dim: int) -> None:
    canonical = np.arange(heads * head_dim)
    stored = interleave(canonical, heads)
    row_map = names.interleaved_rows(heads, head_dim)
    assert row_map.itemsize == 4
    np.testing.assert_array_equal(stored[np.array(row_map)], canonical)


def test_half_split_rope_after_the_map_is_interleaved_rope_before_it() -> None:
    """The same attention scores: Meta's complex rotation of neighbours, and Hugging Face's of halves."""
    heads, head_dim, rng = 2, 8, np.random.default_rng(0)
    angles = 7 * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    q, k = rng.standard_normal((2, heads * head_dim))

    def meta(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(heads, -1, 2)
        return (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)

    def half_split(rows: np.ndarray) -> np.ndarray:
        gathered = rows[np.array(names.interleaved_rows(heads, head_dim))].reshape(heads, head_dim)
        first, second = np.split(gathered, 2, axis=1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)

    still = k[np.array(names.interleaved_rows(heads, head_dim))].reshape(heads, head_dim)
    complex_k = k.reshape(heads, -1, 2) @ [1, 1j]
    np.testing.assert_allclose((half_split(q) * still).sum(1), (meta(q) * complex_k.conj()).real.sum(1), rtol=1e-12)
