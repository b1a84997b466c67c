"""The C ABI as these tests call it: written from herder.h alone, a second reading of it beside herder/runtime's."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import herder

OK, ERR_ARGUMENT, ERR_MEMORY, ERR_FORMAT, ERR_NUMERIC = range(5)

Floats = npt.NDArray[np.float32]


class Refused(Exception):
    """The core returned an error."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Error(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int32), ("message", ctypes.c_char * 252))


class CSampling(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("presence_penalty", ctypes.c_float),
        ("frequency_penalty", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("step", ctypes.c_int64),
        ("n_bias", ctypes.c_int32),
        ("bias_ids", ctypes.c_void_p),
        ("bias_values", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("history", ctypes.c_void_p),
        ("n_history", ctypes.c_int32),
        ("n_prompt", ctypes.c_int32),
        ("top_logprobs", ctypes.c_int32),
    )


@functools.cache
def core() -> ctypes.CDLL:
    """The library of this source tree: `make native` builds it and puts it there."""
    path = Path(herder.__file__).parent / "_core" / "libherder_core.so"
    assert path.exists(), f"{path} is missing: build it with `make native`"
    return ctypes.CDLL(str(path))


def pointer(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None or array.size == 0 else array.ctypes.data


def check(status: int, error: Error) -> None:
    if status != OK:
        assert error.code == status
        message = error.message.decode()
        assert message and "\n" not in message
        raise Refused(status, message)


def unpack(format_id: int, data: npt.NDArray[np.uint8], rows: int, cols: int) -> Floats:
    """hd_unpack."""
    out = np.full((rows, cols), np.float32(12345), np.float32)
    error = Error()
    status = core().hd_unpack(
        ctypes.c_int32(format_id),
        ctypes.c_void_p(pointer(data)),
        ctypes.c_size_t(data.nbytes),
        ctypes.c_int64(rows),
        ctypes.c_int64(cols),
        ctypes.c_void_p(pointer(out)),
        ctypes.byref(error),
    )
    check(status, error)
    return out


@dataclass(frozen=True)
class Options:
    """hd_sampling with everything off."""

    temperature: float = 0
    top_k: int = 0
    top_p: float = 1
    min_p: float = 0
    repetition_penalty: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    seed: int = 0
    step: int = 0
    bias: Sequence[tuple[int, float]] = ()
    allowed: Sequence[int] | None = None
    history: Sequence[int] = ()
    n_prompt: int = 0
    top_logprobs: int = 0


@dataclass
class Sampled:
    token: int
    logprob: np.float32
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[np.float32] = field(default_factory=list)


def mask_words(allowed: Sequence[int], vocab: int) -> npt.NDArray[np.uint32]:
    words = np.zeros((vocab + 31) // 32, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


def sample(logits: Floats, options: Options, vocab: int | None = None) -> Sampled:
    """hd_sample."""
    o = options
    logits = np.ascontiguousarray(logits, np.float32)
    vocab = logits.size if vocab is None else vocab
    bias_ids = np.array([token for token, _ in o.bias], np.int32)
    bias_values = np.array([value for _, value in o.bias], np.float32)
    history = np.array(o.history, np.int32)
    mask = None if o.allowed is None else mask_words(o.allowed, vocab)
    c = CSampling(
        o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, o.presence_penalty, o.frequency_penalty,
        o.seed, o.step, len(o.bias), pointer(bias_ids), pointer(bias_values), pointer(mask), pointer(history),
        len(o.history), o.n_prompt, o.top_logprobs,
    )  # fmt: skip
    token, logprob, error = ctypes.c_int32(-1), ctypes.c_float(), Error()
    top_ids = np.full(max(o.top_logprobs, 0), -1, np.int32)
    top_logprobs = np.zeros(max(o.top_logprobs, 0), np.float32)
    status = core().hd_sample(
        ctypes.c_void_p(pointer(logits)),
        ctypes.c_int32(vocab),
        ctypes.byref(c),
        ctypes.byref(token),
        ctypes.byref(logprob),
        ctypes.c_void_p(pointer(top_ids)),
        ctypes.c_void_p(pointer(top_logprobs)),
        ctypes.byref(error),
    )
    check(status, error)
    return Sampled(token.value, np.float32(logprob.value), top_ids.tolist(), list(top_logprobs))
