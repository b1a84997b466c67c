"""The C ABI of the native core (native/include/herder.h) as ctypes: structures, functions, statuses.

The library is `herder/_core/libherder_core.so` (.dylib, .dll) inside the package, put there by CMake.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
import sys
from ctypes import c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any, NamedTuple, NoReturn

from herder.core.errors import HerderError, NumericError, OutOfMemory, UnsupportedModel, UsageError

ABI_VERSION = 5

OK = 0
ERR_ARGUMENT, ERR_MEMORY, ERR_FORMAT, ERR_NUMERIC, ERR_INTERNAL, ERR_INTERRUPTED = range(1, 7)

DTYPE_AUTO, DTYPE_FLOAT32 = 0, 1
ROUTER_SOFTMAX, ROUTER_SIGMOID = 0, 1


class Error(ctypes.Structure):
    """hd_error"""

    _fields_ = (("code", c_int32), ("message", c_char * 252))


class LayerPlan(ctypes.Structure):
    """hd_layer_plan"""

    _fields_ = (
        ("rope", c_int32),
        ("window", c_int32),
        ("chunk", c_int32),
        ("qk_norm", c_int32),
        ("temperature", c_int32),
        ("experts", c_int32),
        ("local", c_int32),
    )


class Config(ctypes.Structure):
    """hd_config"""

    _fields_ = (
        ("n_layers", c_int32),
        ("dim", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("ffn_dim", c_int32),
        ("vocab", c_int32),
        ("norm_eps", c_float),
        ("context", c_int32),
        ("rope_inv_freq", c_void_p),
        ("rope_attention_factor", c_float),
        ("layers", c_void_p),
        ("compute", c_int32),
        ("threads", c_int32),
        ("kv_pages", c_int32),
        ("kv_local_pages", c_int32),
        ("temperature_floor", c_int32),
        ("temperature_scale", c_float),
        ("n_experts", c_int32),
        ("n_experts_used", c_int32),
        ("expert_ffn_dim", c_int32),
        ("shared_ffn_dim", c_int32),
        ("router", c_int32),
        ("expert_memory", c_int64),
    )


class Tensor(ctypes.Structure):
    """hd_tensor"""

    _fields_ = (
        ("role", c_int32),
        ("layer", c_int32),
        ("expert", c_int32),
        ("format", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("data", c_void_p),
        ("bytes", c_size_t),
        ("row_map", c_void_p),
        ("turned", c_int64),
        ("lazy", c_int32),
        ("packed", c_int32),
    )


class Sampling(ctypes.Structure):
    """hd_sampling"""

    _fields_ = (
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("seed", c_uint64),
        ("step", c_int64),
        ("n_bias", c_int32),
        ("bias_ids", c_void_p),
        ("bias_values", c_void_p),
        ("mask", c_void_p),
        ("history", c_void_p),
        ("n_history", c_int32),
        ("n_prompt", c_int32),
        ("top_logprobs", c_int32),
    )


class Chunk(ctypes.Structure):
    """hd_chunk"""

    _fields_ = (
        ("tokens", c_void_p),
        ("n_tokens", c_int32),
        ("start", c_int32),
        ("pages", c_void_p),
        ("local_pages", c_void_p),
        ("n_pages", c_int32),
        ("n_outputs", c_int32),
        ("want", c_int32),
        ("bf16", c_int32),
        ("sampling", c_void_p),
        ("targets", c_void_p),
        ("out_tokens", c_void_p),
        ("out_logprobs", c_void_p),
        ("out_top_ids", c_void_p),
        ("out_top_logprobs", c_void_p),
        ("out_logits", c_void_p),
        ("out_scores", c_void_p),
        ("out_hidden", c_void_p),
    )


# The two structures of every step, as one pack_into each: setting their fields through ctypes takes ten times as long.
# "@" aligns as C does; 0Q pads the end.
PACK_CHUNK = struct.Struct("@PiiPPiiiiPPPPPPPPP")
PACK_SAMPLING = struct.Struct("@fifffffQqiPPPPiii0Q")

Tap = ctypes.CFUNCTYPE(None, c_void_p, c_char_p, c_int64, c_int64, c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "hd_abi_version": (c_int32, []),
    "hd_cpu_info": (c_int32, [c_char_p, c_int32]),
    "hd_model_create": (c_int32, [c_void_p, c_char_p, c_void_p, c_void_p]),
    "hd_model_tensor": (c_int32, [c_void_p, c_void_p, c_void_p]),
    "hd_model_finish": (c_int32, [c_void_p, c_void_p]),
    "hd_model_free": (None, [c_void_p]),
    "hd_model_memory": (None, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "hd_model_experts": (None, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "hd_forward": (c_int32, [c_void_p, c_void_p, c_int32, c_void_p]),
    "hd_model_interrupt": (None, [c_void_p]),
    "hd_model_tap": (None, [c_void_p, Tap, c_void_p]),
    "hd_sample": (c_int32, [c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "hd_unpack": (c_int32, [c_int32, c_void_p, c_size_t, c_int64, c_int64, c_void_p, c_void_p]),
    "hd_packed_bytes": (c_int32, [c_int32, c_int64, c_int64, c_int32, c_void_p, c_void_p]),
    "hd_pack": (c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_size_t, c_void_p]),
    "hd_layout_version": (c_int32, []),
    "hd_measure": (c_int32, [c_int32, c_size_t, c_double, c_char_p, c_void_p, c_void_p, c_void_p, c_void_p]),
}


class Interrupted(RuntimeError):
    """The batch was given up because somebody asked for it."""


def library_path() -> str:
    """Where the core's library belongs on this system."""
    name = {"darwin": "libherder_core.dylib", "win32": "herder_core.dll"}.get(sys.platform, "libherder_core.so")
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_core", name)


@functools.cache
def library(path: str | None = None) -> ctypes.CDLL:
    """The loaded core, its functions typed. path: another build of it, for experiments.

    Raises UsageError when it is missing, does not load, or speaks another version of the ABI.
    """
    path = path or library_path()
    try:
        core = ctypes.CDLL(path)
    except OSError as error:
        reason = "is missing" if not os.path.exists(path) else f"does not load ({error})"
        raise UsageError(f"Herder's native core {path} {reason}: install Herder again (pip install herder)") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(core, name, None)
        if function is None:
            raise UsageError(f"{path} has no {name}: it is not Herder's native core, or of another version")
        function.restype, function.argtypes = result, arguments
    version = core.hd_abi_version()
    if version != ABI_VERSION:
        raise UsageError(f"{path} has ABI version {version}, this Herder needs {ABI_VERSION}: install Herder again")
    return core


def fail(status: int, error: Error, refused: type[HerderError] | None = None) -> NoReturn:
    """Raises the exception for a status that is not OK.

    refused: what a wrong argument means to the caller; None where only a bug of ours can cause one.
    """
    message = error.message.decode("utf-8", "replace") or f"the native core failed with status {status}"
    if status == ERR_MEMORY:
        raise OutOfMemory(f"{message}: use a smaller model, format or context, or close other programs")
    if status == ERR_FORMAT:
        raise UnsupportedModel(message)
    if status == ERR_NUMERIC:
        raise NumericError(message if ":" in message else f"{message}: download the model again")
    if status == ERR_INTERRUPTED:
        raise Interrupted(message)
    if status == ERR_ARGUMENT and refused is not None:
        raise refused(message)
    raise RuntimeError(f"native core: {message}")


def cpu_info(path: str | None = None) -> dict[str, Any]:
    """What the core knows about this CPU: arch, isa (the best one), isas, cores, features."""
    core = library(path)
    size = core.hd_cpu_info(None, 0)
    buffer = ctypes.create_string_buffer(size + 1)
    core.hd_cpu_info(buffer, size + 1)
    information: dict[str, Any] = json.loads(buffer.value)
    return information


class Measured(NamedTuple):
    """Limits of this machine: bytes/s read from memory, int8 operations/s (a multiply-add is two), float32 FLOP/s."""

    bandwidth: float
    int8_ops: float
    f32_flops: float


def measure(
    threads: int = 0, bytes_: int = 1 << 28, seconds: float = 0.5, isa: str | None = None, path: str | None = None
) -> Measured:
    """Measures this machine with the core's own kernels; takes about 3 * seconds. bytes_: more than the caches hold.
    isa: of load_model. Raises UsageError for what cannot be measured."""
    core = library(path)
    error = Error()
    results = (c_double * 3)()
    addresses = [ctypes.addressof(results) + 8 * index for index in range(3)]
    name = None if isa is None else isa.encode()
    status = core.hd_measure(threads, bytes_, seconds, name, *addresses, ctypes.addressof(error))
    if status:
        fail(status, error, UsageError)
    return Measured(*results)
