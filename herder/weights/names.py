"""Tensor names and one row order: what a file calls a tensor -> its role and layer -> the canonical name, and back.

Canonical names are Hugging Face's (`model.layers.3.self_attn.q_proj.weight`), and q and k rows are canonically in its
half-split RoPE order: within a head, rotation i pairs row i with row i + head_dim / 2. GGUF files, Meta's own files and
Hugging Face's Llama 4 keep the interleaved order, which pairs rows 2i and 2i + 1; `interleaved_rows` gathers them. A
gather of whole rows is exact for every storage format, since a block never spans two rows.

Where Hugging Face's names differ between models, ours are Llama's, with `mlp.router`, `mlp.experts.E` and
`mlp.shared_expert` for mixtures of experts (names_hf.py turns the others into them).
"""

from __future__ import annotations

import enum
import re
from array import array
from typing import NamedTuple


class Role(enum.IntEnum):
    """What a tensor is; the values of hd_role in native/include/herder.h."""

    EMBED = 0
    HEAD = 1
    FINAL_NORM = 2
    ATTN_NORM = 3
    WQ = 4
    WK = 5
    WV = 6
    WO = 7
    BQ = 8
    BK = 9
    BV = 10
    BO = 11
    FFN_NORM = 12
    W_GATE = 13
    W_UP = 14
    W_DOWN = 15
    B_GATE = 16
    B_UP = 17
    B_DOWN = 18
    ROUTER = 19
    EXPERT_GATE = 20
    EXPERT_UP = 21
    EXPERT_DOWN = 22
    SHARED_GATE = 23
    SHARED_UP = 24
    SHARED_DOWN = 25
    # The core has none of these: cross-attention layers (whose q, k, v and o are WQ..WO) and the vision tower.
    Q_NORM = 26
    K_NORM = 27
    ATTN_GATE = 28
    FFN_GATE = 29
    VISION = 30


# role: (canonical name, GGUF name); {} is the layer, {expert} the expert. GGUF stacks all experts in one tensor.
_NAMES: dict[Role, tuple[str, str]] = {
    Role.EMBED: ("model.embed_tokens.weight", "token_embd.weight"),
    Role.HEAD: ("lm_head.weight", "output.weight"),
    Role.FINAL_NORM: ("model.norm.weight", "output_norm.weight"),
    Role.ATTN_NORM: ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    Role.WQ: ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    Role.WK: ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    Role.WV: ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    Role.WO: ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    Role.BQ: ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    Role.BK: ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    Role.BV: ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    Role.BO: ("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias"),
    Role.FFN_NORM: ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    Role.W_GATE: ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    Role.W_UP: ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    Role.W_DOWN: ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    Role.B_GATE: ("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias"),
    Role.B_UP: ("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias"),
    Role.B_DOWN: ("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias"),
    Role.ROUTER: ("model.layers.{}.mlp.router.weight", "blk.{}.ffn_gate_inp.weight"),
    Role.EXPERT_GATE: ("model.layers.{}.mlp.experts.{expert}.gate_proj.weight", "blk.{}.ffn_gate_exps.weight"),
    Role.EXPERT_UP: ("model.layers.{}.mlp.experts.{expert}.up_proj.weight", "blk.{}.ffn_up_exps.weight"),
    Role.EXPERT_DOWN: ("model.layers.{}.mlp.experts.{expert}.down_proj.weight", "blk.{}.ffn_down_exps.weight"),
    Role.SHARED_GATE: ("model.layers.{}.mlp.shared_expert.gate_proj.weight", "blk.{}.ffn_gate_shexp.weight"),
    Role.SHARED_UP: ("model.layers.{}.mlp.shared_expert.up_proj.weight", "blk.{}.ffn_up_shexp.weight"),
    Role.SHARED_DOWN: ("model.layers.{}.mlp.shared_expert.down_proj.weight", "blk.{}.ffn_down_shexp.weight"),
    Role.Q_NORM: ("model.layers.{}.cross_attn.q_norm.weight", ""),
    Role.K_NORM: ("model.layers.{}.cross_attn.k_norm.weight", ""),
    Role.ATTN_GATE: ("model.layers.{}.cross_attn_attn_gate", ""),
    Role.FFN_GATE: ("model.layers.{}.cross_attn_mlp_gate", ""),
}

ATTENTION = frozenset({Role.WQ, Role.WK, Role.WV, Role.WO})
ATTENTION_BIASES = frozenset({Role.BQ, Role.BK, Role.BV, Role.BO})
MLP_BIASES = frozenset({Role.B_GATE, Role.B_UP, Role.B_DOWN})
BIASES = ATTENTION_BIASES | MLP_BIASES
EXPERTS = frozenset({Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN})
PER_LAYER = frozenset(role for role in Role if Role.ATTN_NORM <= role <= Role.FFN_GATE)

STACKED = -1  # Place.expert of a tensor that holds all experts of its layer, one after another

# Names that carry no weight of the model, and why they may be left out. Everything else unknown is refused.
_IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd(\.weight)?"),
        "RoPE frequencies as older converters stored them: a function of rope_theta and head_dim, which we compute",
    ),
    (re.compile(r"rope_freqs\.weight"), "read into Rope.factors"),
    (re.compile(r"rope_factors_(short|long)\.weight"), "read into Rope.factors and Rope.long_factors"),
)

_LAYER = re.compile(r"(model\.layers|blk)\.(0|[1-9]\d{0,8})\.")
_EXPERT = re.compile(r"mlp\.experts\.(0|[1-9]\d{0,8})\.")
_GGUF_EXPERT = re.compile(r"ffn_(gate|up|down)\.(0|[1-9]\d{0,8})\.weight")  # before experts were stacked
_BY_NAME: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names if name}


class Place(NamedTuple):
    """What a tensor is in which layer. layer is 0 outside the layers, expert 0 but for the EXPERT roles, where it may
    be STACKED. cross: the name is that of a cross-attention layer's q, k, v or o."""

    role: Role
    layer: int = 0
    expert: int = 0
    cross: bool = False


def canonical_name(role: Role, layer: int = 0, expert: int = 0, cross: bool = False) -> str:
    """The canonical name. Arguments that a role's name does not have are not used. Role.VISION has many names, those of
    the Hugging Face hub: KeyError."""
    name = _NAMES[role][0].format(layer, expert=expert)
    return name.replace(".self_attn.", ".cross_attn.") if cross and role in ATTENTION else name


def gguf_name(role: Role, layer: int = 0) -> str:
    """The GGUF name, of the EXPERT roles that of all experts stacked. KeyError for a role that no GGUF file has."""
    name = _NAMES[role][1]
    if not name:
        raise KeyError(role)
    return name.format(layer)


def parse_name(name: str) -> Place | None:
    """Where a canonical or GGUF name belongs; None for a name that is neither (or of the vision tower)."""
    if "{" in name:  # the tables' own placeholders
        return None
    match = _LAYER.match(name)
    if match is None:
        role = _BY_NAME.get(name)
        return None if role is None or role in PER_LAYER else Place(role)
    layer, rest, expert, cross = int(match[2]), name[match.end() :], 0, False
    if match[1] == "blk":
        if numbered := _GGUF_EXPERT.fullmatch(rest):
            rest, expert = f"ffn_{numbered[1]}_exps.weight", int(numbered[2])
        elif "_exps." in rest:
            expert = STACKED
    elif numbered := _EXPERT.match(rest):
        rest, expert = "mlp.experts.{expert}." + rest[numbered.end() :], int(numbered[1])
    elif rest.startswith("cross_attn.") and rest.endswith("_proj.weight"):
        rest, cross = "self_attn." + rest.removeprefix("cross_attn."), True
    role = _BY_NAME.get(f"{match[1]}.{{}}.{rest}")
    return None if role is None else Place(role, layer, expert, cross)


def ignored(name: str) -> str | None:
    """Why the tensor of this name may be left out, or None when it may not."""
    return next((reason for pattern, reason in _IGNORED if pattern.fullmatch(name)), None)


def interleaved_rows(heads: int, head_dim: int) -> array[int]:
    """Row map from interleaved to half-split order: canonical row r is source row map[r]. heads * head_dim entries.

    Canonical row (h, s, i), s the half and i the rotation, is source row (h, i, s); the inverse of the permutation that
    Hugging Face's converter applies to Meta's q and k: view(heads, head_dim / 2, 2, cols).transpose(1, 2).
    """
    half = head_dim // 2
    return array("I", (h * head_dim + 2 * i + s for h in range(heads) for s in range(2) for i in range(half)))
