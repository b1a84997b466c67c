"""open_model(path) -> ModelFiles: a model's files, of whichever kind, as a configuration and named tensors.

The tensors are checked against the configuration before anything is loaded: each required one is there once, with the
right shape; whatever else the files hold is known to carry nothing, or refused by name.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from herder.core.config import Experts, LayerPlan, ModelConfig
from herder.core.errors import ModelFileError, ModelNotFound, UnsupportedModel
from herder.formats.table import BY_ID, Format
from herder.weights.mapping import MappedFile, OwnedBytes
from herder.weights.names import ATTENTION, ATTENTION_BIASES, EXPERTS, MLP_BIASES, Place, Role, canonical_name
from herder.weights.vision_tensors import vision_shapes


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor in its storage format, where it lies in memory, or how it is made.

    name: canonical. layer: 0 outside the layers. expert: of the EXPERT roles. format_id: GGUF type id
    (herder.formats.table). A matrix is (rows = outputs, cols = inputs); a vector has rows = 1. Row-major, no padding
    between rows. Of Role.VISION, rows is the file's first dimension and cols the product of the others.
    address: of the first byte, valid until ModelFiles.close(); aligned to the file's alignment only, so possibly not to
    the element size (safetensors). bytes: what (format, rows, cols) needs.
    row_map: None, or `rows` entries: row r of the tensor is stored row row_map[r].
    turned: 0, or the matrix is stored as its transpose, (cols, rows), with this many values from one stored row to the
    next (Hugging Face's Llama 4 experts). Only of F32, F16 and BF16, and without a row map.
    make: None where the file holds the tensor as it is; otherwise address is 0 and make() gives its bytes (shards
    joined, quantized weights repacked). Each call makes them anew; who calls drops them when done.
    """

    name: str
    role: Role
    layer: int
    format_id: int
    rows: int
    cols: int
    address: int
    bytes: int
    row_map: array[int] | None = None
    file: MappedFile | OwnedBytes | None = field(default=None, repr=False, compare=False)
    offset: int = field(default=0, repr=False, compare=False)
    expert: int = 0
    turned: int = 0
    make: Callable[[], OwnedBytes] | None = field(default=None, repr=False, compare=False)

    @property
    def format(self) -> Format:
        return BY_ID[self.format_id]

    def view(self) -> memoryview:
        """The tensor's bytes in stored row order, row-major (rows, cols): without a copy where the file has them so,
        made or transposed otherwise. They outlive ModelFiles.close()."""
        if self.make is not None:
            return self.make().view(0, self.bytes)
        assert self.file is not None
        return self._transposed() if self.turned else self.file.view(self.offset, self.bytes)

    def release(self) -> None:
        """Drops the mapped pages from this process's memory, for a loader that has repacked the tensor."""
        if self.file is not None:
            self.file.release(self.offset, self._span)

    @property
    def _span(self) -> int:
        """Bytes from the first to the last of the stored ones."""
        if not self.turned:
            return self.bytes
        return ((self.cols - 1) * self.turned + self.rows) * self.format.block_bytes

    def _transposed(self) -> memoryview:
        import numpy as np

        assert self.file is not None
        size = self.format.block_bytes
        stored = np.frombuffer(self.file.view(self.offset, self._span), f"u{size}")
        columns = np.lib.stride_tricks.as_strided(stored, (self.rows, self.cols), (size, self.turned * size))
        return memoryview(np.ascontiguousarray(columns)).cast("B")  # type: ignore[arg-type]  # has the buffer protocol


class ModelFiles:
    """The open files of one model.

    kind: `gguf`, `safetensors` (Hugging Face), `meta` (consolidated.NN.pth) or `mistral` (consolidated.safetensors).
    path: what was opened; paths: every weight file. file_bytes: their total size.
    tensors: in file order; read them through `load()`, which checks that the files are still whole.
    metadata: a GGUF's key/values (see weights/gguf.py for the types), or {"config.json": {...}, ...} of a directory.
    vocabulary_only: a GGUF without tensors, of which only the tokenizer can be used; `config` then raises.
    chat_templates: Jinja source by name; `default` is `chat_template`.
    bos, eos: token ids or None. stop_token_ids: every id that ends a turn, as far as the files say.
    """

    def __init__(
        self,
        *,
        kind: str,
        path: Path,
        files: list[MappedFile],
        config: ModelConfig | None,
        tensors: list[TensorSource],
        metadata: Mapping[str, Any],
        chat_templates: Mapping[str, str],
        bos: int | None,
        eos: int | None,
        stop_token_ids: frozenset[int],
        name: str,
        licence: str,
    ) -> None:
        self.kind = kind
        self.path = path
        self.paths = tuple(file.path for file in files)
        self.file_bytes = sum(file.size for file in files)
        self.tensors = tensors
        self.metadata = metadata
        self.chat_templates = chat_templates
        self.bos = bos
        self.eos = eos
        self.stop_token_ids = stop_token_ids
        self.name = name
        self.licence = licence
        self._config = config
        self._files = files

    @property
    def vocabulary_only(self) -> bool:
        return self._config is None

    @property
    def config(self) -> ModelConfig:
        if self._config is None:
            raise UnsupportedModel(
                f"{self.path} holds only a vocabulary: it can tokenize, but it has no weights to run"
            )
        return self._config

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    def load(self) -> Iterator[TensorSource]:
        """The tensors one after another, the files checked before each and after the last.

        Raises ModelFileError when a file changed since it was opened. What cannot be detected: a file truncated between
        the check and the reading of that one tensor (SIGBUS ends the process, see weights/mapping.py), and a writer
        that changes bytes and then sets the modification time back.
        """
        for tensor in self.tensors:
            if tensor.file is not None:
                tensor.file.verify_unchanged()
            else:
                self.verify_unchanged()
            yield tensor
        self.verify_unchanged()

    def verify_unchanged(self) -> None:
        """Raises ModelFileError when a file's size or modification time changed since it was opened."""
        for file in self._files:
            file.verify_unchanged()

    def close(self) -> None:
        """Unmaps the files: every address handed out becomes invalid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> ModelFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_model(path: Path) -> ModelFiles:
    """Opens a .gguf file (or the first of a split one), or a directory that holds one model. Maps the weights; reads no
    tensor.

    A directory may hold Hugging Face's files (config.json with model.safetensors or its shards), which come first;
    Meta's or Mistral's own (params.json with consolidated.*); or one GGUF model.
    Raises ModelNotFound, ModelFileError (damaged, contradictory) or UnsupportedModel (named reason).
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if path.suffix in (".safetensors", ".bin", ".pth", ".pt"):
        beside = "params.json" if path.name.startswith("consolidated") else "config.json"
        raise UnsupportedModel(f"{path} is not a whole model: give the directory that also holds {beside}")
    from herder.weights.source_gguf import open_gguf

    return open_gguf(path)


def _open_directory(directory: Path) -> ModelFiles:
    from herder.weights.source_gguf import open_gguf
    from herder.weights.source_hf import WEIGHTS
    from herder.weights.source_hf import open_directory as open_hf

    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise ModelFileError(f"{directory} cannot be read ({error.strerror}): check its permissions") from None
    published = any(name in names for name in WEIGHTS)
    if published and "config.json" in names:
        return open_hf(directory)
    if any(name.startswith("consolidated") and name.endswith((".pth", ".pt", ".safetensors")) for name in names):
        return _open_consolidated(directory)
    if any(name.endswith(".gguf") for name in names):
        return open_gguf(_gguf_in(directory))
    if not published and (directory / "original" / "params.json").exists():
        original = directory / "original"
        raise ModelNotFound(
            f"{directory} has its weights in Meta's own format, in a folder of their own: give {original}"
        )
    if "config.json" in names:
        return open_hf(directory)  # which says what of the weights is missing
    if "params.json" in names:
        raise ModelNotFound(f"{directory} has params.json and no consolidated.00.pth: download the weights too")
    missing = "model.safetensors without config.json" if published else "neither config.json nor a .gguf file"
    raise ModelNotFound(f"{directory} holds {missing}: give the directory of a model")


def _open_consolidated(directory: Path) -> ModelFiles:
    from herder.weights.config_mistral import is_mistral
    from herder.weights.source_meta import open_meta, read_params
    from herder.weights.source_mistral import open_mistral

    return (open_mistral if is_mistral(read_params(directory)) else open_meta)(directory)


def _gguf_in(directory: Path) -> Path:
    found = sorted(directory.glob("*.gguf"))
    firsts = [p for p in found if "-of-" not in p.name or "-00001-of-" in p.name]
    if len(firsts) == 1:
        return firsts[0]
    if firsts:
        raise ModelNotFound(f"{directory} holds {len(firsts)} GGUF models: give one, such as {firsts[0]}")
    raise ModelNotFound(f"{directory} lacks the first part of {found[0].name}: download it too")


def shape_of(role: Role, config: ModelConfig) -> tuple[int, int]:
    """(rows, cols) that a tensor of this role must have; (1, length) for vectors. Role.VISION has no one shape: see
    vision_tensors.py."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    moe = config.experts or Experts(0, 0, 0, "softmax")
    return {
        Role.EMBED: (config.embedding_rows or config.vocab, config.dim),
        Role.HEAD: (config.vocab, config.dim),
        Role.FINAL_NORM: (1, config.dim),
        Role.ATTN_NORM: (1, config.dim),
        Role.WQ: (q, config.dim),
        Role.WK: (kv, config.dim),
        Role.WV: (kv, config.dim),
        Role.WO: (config.dim, q),
        Role.BQ: (1, q),
        Role.BK: (1, kv),
        Role.BV: (1, kv),
        Role.BO: (1, config.dim),
        Role.FFN_NORM: (1, config.dim),
        Role.W_GATE: (config.ffn_dim, config.dim),
        Role.W_UP: (config.ffn_dim, config.dim),
        Role.W_DOWN: (config.dim, config.ffn_dim),
        Role.B_GATE: (1, config.ffn_dim),
        Role.B_UP: (1, config.ffn_dim),
        Role.B_DOWN: (1, config.dim),
        Role.ROUTER: (moe.count, config.dim),
        Role.EXPERT_GATE: (moe.ffn_dim, config.dim),
        Role.EXPERT_UP: (moe.ffn_dim, config.dim),
        Role.EXPERT_DOWN: (config.dim, moe.ffn_dim),
        Role.SHARED_GATE: (moe.shared_ffn_dim, config.dim),
        Role.SHARED_UP: (moe.shared_ffn_dim, config.dim),
        Role.SHARED_DOWN: (config.dim, moe.shared_ffn_dim),
        Role.Q_NORM: (1, config.head_dim),
        Role.K_NORM: (1, config.head_dim),
        Role.ATTN_GATE: (1, 1),
        Role.FFN_GATE: (1, 1),
    }[role]


def check_shape_sanity(where: str, config: ModelConfig) -> None:
    """Raises ModelFileError for a configuration that no model can have."""
    if config.heads % config.kv_heads:
        raise ModelFileError(f"{where}: {config.heads} heads are not a multiple of {config.kv_heads} KV heads")
    if config.head_dim % 2:
        raise ModelFileError(f"{where}: head_dim is {config.head_dim}: RoPE needs an even number")
    if config.experts is not None and config.experts.active > config.experts.count:
        raise ModelFileError(
            f"{where}: {config.experts.active} experts for each token are more than all {config.experts.count}"
        )


def required(config: ModelConfig, biases: frozenset[Role] = frozenset()) -> Iterator[Place]:
    """The tensors of the language model that its files must hold, and no others. biases: the bias roles that each layer
    of self-attention (or with a dense feed-forward network) has."""
    yield Place(Role.EMBED)
    for layer, plan in enumerate(config.plan):
        for role in sorted(_layer_roles(config, plan) | biases):
            if (role in ATTENTION_BIASES and plan.cross) or (role in MLP_BIASES and plan.experts):
                continue
            count = config.experts.count if config.experts is not None and role in EXPERTS else 1
            for expert in range(count):
                yield Place(role, layer, expert, plan.cross and role in ATTENTION)
    yield Place(Role.FINAL_NORM)
    if not config.tied:
        yield Place(Role.HEAD)


def _layer_roles(config: ModelConfig, plan: LayerPlan) -> frozenset[Role]:
    roles = ATTENTION | {Role.ATTN_NORM, Role.FFN_NORM}
    if plan.cross:
        roles |= {Role.Q_NORM, Role.K_NORM, Role.ATTN_GATE, Role.FFN_GATE}
    if not plan.experts or config.experts is None:
        return roles | {Role.W_GATE, Role.W_UP, Role.W_DOWN}
    shared = {Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN} if config.experts.shared_ffn_dim else frozenset()
    return roles | {Role.ROUTER} | EXPERTS | shared


def check_complete(
    where: str, config: ModelConfig, tensors: Iterable[TensorSource], biases: frozenset[Role] = frozenset()
) -> None:
    """Raises ModelFileError unless the tensors are exactly those the configuration asks for, the image encoder's
    included, each once.

    biases: the bias roles that the model has. Takes no more time and memory than the tensors there are deserve, however
    many a lying configuration asks for.
    """
    found: set[str] = set()
    for tensor in tensors:
        if tensor.name in found:
            raise ModelFileError(f"{where}: tensor {tensor.name} is there twice: convert the model again")
        found.add(tensor.name)
    vision = vision_shapes(config)
    wanted = 0
    for name in chain((canonical_name(*place) for place in required(config, biases)), vision):
        wanted += 1
        if name not in found:
            raise ModelFileError(f"{where}: tensor {name} is missing: download the file again")
    if wanted < len(found):
        asked = {canonical_name(*place) for place in required(config, biases)} | set(vision)
        moe = f", {sum(plan.experts for plan in config.plan)} of them with experts" if config.experts else ""
        raise ModelFileError(
            f"{where}: tensor {min(found - asked)} does not belong to a model of {config.layers} layers{moe} with "
            f"attention_bias {config.attention_bias}, mlp_bias {config.mlp_bias}: file and configuration disagree"
        )
