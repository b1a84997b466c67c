"""A model's files -> the native core: its shape, its tensors, and which of them are packed only when they are needed.

What the core has no layers for is left out: an image encoder, and the layers that attend to it. A Llama 3.2 Vision
model that sees no image is exactly its self-attention layers, so those are what is loaded, numbered without gaps.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from herder.core.config import LayerPlan, ModelConfig
from herder.core.errors import ModelFileError, UsageError
from herder.runtime import abi
from herder.runtime.prepacked import open_packed, write
from herder.weights.mapping import MappedFile
from herder.weights.names import EXPERTS, PER_LAYER, Role
from herder.weights.rope import inv_freq
from herder.weights.source import ModelFiles, TensorSource
from herder.weights.storage import Progress as Transfer

Progress = Callable[[int, int], None]  # bytes packed, bytes in all

_ROUTERS = {"softmax": abi.ROUTER_SOFTMAX, "sigmoid": abi.ROUTER_SIGMOID}


@dataclass(frozen=True, slots=True)
class Shape:
    """hd_config, and what it points to."""

    config: abi.Config
    plan: ctypes.Array[abi.LayerPlan]
    frequencies: array[float]


def core_shape(
    config: ModelConfig,
    *,
    context: int,
    kv_pages: int,
    kv_local_pages: int,
    float32: bool,
    threads: int,
    expert_memory: int,
) -> Shape:
    """The arguments are those of runtime.native.load_model. Raises UsageError for local pages that no layer uses."""
    if kv_local_pages and config.local is None:
        raise UsageError(f"kv_local_pages is {kv_local_pages}: no layer of this model has a bounded reach, give 0")
    layers = [layer for layer in config.plan if not layer.cross]
    plan = (abi.LayerPlan * len(layers))(*(_plan(layer, kv_local_pages > 0) for layer in layers))
    frequencies, factor = inv_freq(config, context)
    shape = abi.Config(
        n_layers=len(layers),
        dim=config.dim,
        n_heads=config.heads,
        n_kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        vocab=config.vocab,
        norm_eps=config.norm_eps,
        context=context,
        rope_inv_freq=frequencies.buffer_info()[0],
        rope_attention_factor=factor,
        layers=ctypes.addressof(plan),
        compute=abi.DTYPE_FLOAT32 if float32 else abi.DTYPE_AUTO,
        threads=threads,
        kv_pages=kv_pages,
        kv_local_pages=kv_local_pages,
    )
    if config.temperature is not None:
        shape.temperature_floor = config.temperature.floor
        shape.temperature_scale = config.temperature.scale
    if config.experts is not None:
        shape.n_experts = config.experts.count
        shape.n_experts_used = config.experts.active
        shape.expert_ffn_dim = config.experts.ffn_dim
        shape.shared_ffn_dim = config.experts.shared_ffn_dim
        shape.router = _ROUTERS[config.experts.router]
        shape.expert_memory = expert_memory
    return Shape(shape, plan, frequencies)


def _plan(layer: LayerPlan, local_store: bool) -> abi.LayerPlan:
    return abi.LayerPlan(
        rope=layer.rope,
        window=layer.window or 0,
        chunk=layer.chunk or 0,
        qk_norm=layer.qk_norm,
        temperature=layer.temperature,
        experts=layer.experts,
        local=local_store and layer.local,
    )


def pack(
    core: ctypes.CDLL, handle: int, files: ModelFiles, progress: Progress | None, float32: bool = False
) -> list[MappedFile]:
    """Hands every tensor to the model and finishes it; those that are stored packed are used where they lie. Returns
    the files, kept open, that weights are still to be read from: their owner closes them after the model is freed.
    Raises ModelFileError, UnsupportedModel or OutOfMemory."""
    config = files.config
    numbers = _numbers(config)
    tensors = [tensor for tensor in files.tensors if wanted(tensor, config)]
    total, done = sum(tensor.bytes for tensor in tensors), 0
    error = abi.Error()
    error_at = ctypes.addressof(error)
    kept: dict[MappedFile, MappedFile] = {}
    stored = open_packed(files, float32)
    if stored is not None:
        kept[stored.file] = stored.file
    try:
        for tensor in files.load():
            if not wanted(tensor, config):
                continue
            size = packed_bytes(tensor, float32) if stored is not None and packable(tensor, config) else 0
            ready = stored.find(tensor, size) if stored is not None and size else 0
            later = not ready and lazy(tensor)
            if later and isinstance(tensor.file, MappedFile) and tensor.file not in kept:
                kept[tensor.file] = tensor.file.share()
            made = tensor.make() if tensor.make is not None and not ready else None
            rows = min(tensor.rows, config.vocab) if tensor.role == Role.EMBED else tensor.rows
            given = abi.Tensor(
                role=int(tensor.role),
                layer=numbers[tensor.layer] if tensor.role in PER_LAYER else 0,
                expert=tensor.expert,
                format=tensor.format_id,
                rows=rows,
                cols=tensor.cols,
                data=ready or (tensor.address if made is None else made.address(0)),
                bytes=size if ready else tensor.bytes // tensor.rows * rows,
                row_map=None if ready or tensor.row_map is None else tensor.row_map.buffer_info()[0],
                turned=0 if ready else tensor.turned,
                lazy=later,
                packed=bool(ready),
            )
            status = core.hd_model_tensor(handle, ctypes.addressof(given), error_at)
            if status:
                abi.fail(status, error, ModelFileError)
            made = None  # freed before the next one is made
            if not (later or ready):
                tensor.release()
            done += tensor.bytes
            if progress is not None:
                progress(done, total)
        status = core.hd_model_finish(handle, error_at)
        if status:
            abi.fail(status, error, ModelFileError)
    except BaseException:
        for file in kept.values():
            file.close()
        raise
    return list(kept.values())


def _numbers(config: ModelConfig) -> list[int]:
    """The core's number of each layer; -1 for those it does not have."""
    numbers, count = [], 0
    for layer in config.plan:
        numbers.append(-1 if layer.cross else count)
        count += not layer.cross
    return numbers


def wanted(tensor: TensorSource, config: ModelConfig) -> bool:
    """Whether the core has the tensor at all."""
    if tensor.role == Role.VISION:
        return False
    return tensor.role not in PER_LAYER or not config.plan[tensor.layer].cross


def packable(tensor: TensorSource, config: ModelConfig) -> bool:
    """Whether the tensor is one that `store` keeps: a matrix, taken whole."""
    return tensor.rows > 1 and (tensor.role != Role.EMBED or tensor.rows == config.vocab)


def store(
    files: ModelFiles, *, float32: bool = False, threads: int = 0, progress: Transfer | None = None
) -> tuple[Path, int]:
    """Packs a model's matrices into HERDER_HOME/packed, from where loading it maps them. Returns the file and its size.

    Raises StorageError when the disk has no room, ModelFileError, UnsupportedModel or OutOfMemory.
    """
    config = files.config
    tensors = [t for t in files.tensors if wanted(t, config) and packable(t, config)]
    path = write(
        files, [(t, packed_bytes(t, float32)) for t in tensors], float32=float32, threads=threads, progress=progress
    )
    return path, path.stat().st_size


def lazy(tensor: TensorSource) -> bool:
    """Whether the core packs the tensor only when a token is routed to its expert."""
    if tensor.role not in EXPERTS or tensor.make is not None:
        return False
    return isinstance(tensor.file, MappedFile) and tensor.row_map is None


def packed_bytes(tensor: TensorSource, float32: bool = False) -> int:
    """Bytes that a tensor takes in the core: more than in the file where scales of few bits become float16, codes of
    five and six bits become bytes, and rows are no multiple of 16."""
    if tensor.rows == 1:
        return 4 * tensor.cols
    compute = abi.DTYPE_FLOAT32 if float32 or tensor.role == Role.ROUTER else abi.DTYPE_AUTO
    error, size = abi.Error(), ctypes.c_int64()
    status = abi.library().hd_packed_bytes(
        tensor.format_id, tensor.rows, tensor.cols, compute, ctypes.addressof(size), ctypes.addressof(error)
    )
    if status:
        abi.fail(status, error, ModelFileError)
    return size.value
