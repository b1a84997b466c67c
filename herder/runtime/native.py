"""The native executor: batches to the C++ core and results back, over ctypes, without NumPy.

A step's structures live in memory allocated once; a step writes a few words into it, makes one foreign call (which
releases the GIL) and reads the tokens out. Logits and hidden states come back as array('f').
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from herder.core.batch import Batch, Chunk, Limits, Output, Want, int_array
from herder.core.config import ModelConfig
from herder.core.errors import UnsupportedModel, UsageError
from herder.core.request import Sampling, TokenLogprob
from herder.runtime import abi
from herder.runtime.packing import Progress, core_shape, pack
from herder.runtime.prompts import PromptDtype, choose
from herder.weights.mapping import MappedFile
from herder.weights.source import ModelFiles

Compute = Literal["auto", "float32"]

BATCH_CHUNKS = 64
BATCH_TOKENS = 512
WORK_BYTES = 48 << 20  # work space that a batch of prompt tokens may take


class Memory(NamedTuple):
    """Bytes the core holds."""

    weights: int
    kv: int
    work: int


class PackedExperts(NamedTuple):
    """Experts that are packed when a token is first routed to them: how many are held now, the bytes they take (part
    of Memory.weights), and how many times one was packed so far."""

    held: int
    bytes: int
    packings: int


@dataclass(slots=True)
class _Ticket:
    chunks: tuple[Chunk, ...]
    # Per chunk, None where not wanted: where its results lie.
    logits: list[array[float] | None] = field(default_factory=list)
    scores: list[array[float] | None] = field(default_factory=list)
    hidden: list[array[float] | None] = field(default_factory=list)
    tops: list[tuple[array[float], array[int], array[float]] | None] = field(default_factory=list)
    alive: list[object] = field(default_factory=list)  # what the structures point to


class NativeExecutor:
    """Runs batches on one hd_model. One ticket at a time: result() runs what launch() has prepared.

    prompt_dtype: what prompts are computed with, if that is a matter of choice (see prompts.choose).
    """

    def __init__(
        self,
        core: ctypes.CDLL,
        handle: int,
        limits: Limits,
        dim: int,
        files: list[MappedFile],
        prompt_dtype: Literal["int8", "bfloat16"] | None,
    ) -> None:
        """files: what the model still reads experts from; closed with it."""
        self.prompt_dtype = prompt_dtype
        self._core = core
        self._forward = core.hd_forward
        self._handle: int | None = handle
        self._limits = limits
        self._dim = dim
        self._files = files
        self._lock = threading.Lock()  # interrupt() comes from other threads and must not meet a freed model
        self._error = abi.Error()
        self._error_at = ctypes.addressof(self._error)
        self._chunks = (abi.Chunk * limits.batch_chunks)()
        self._chunks_at = ctypes.addressof(self._chunks)
        self._samplings = (abi.Sampling * limits.batch_chunks)()
        self._samplings_at = ctypes.addressof(self._samplings)
        self._tokens = array("i", bytes(4 * limits.batch_tokens))
        self._tokens_at = self._tokens.buffer_info()[0]
        self._bias: dict[int, tuple[Sampling, array[int], array[float]]] = {}
        self._tap: Any = None

    @property
    def limits(self) -> Limits:
        return self._limits

    def launch(self, batch: Batch) -> _Ticket:
        ticket = _Ticket(batch.chunks)
        out = self._tokens_at
        for index, chunk in enumerate(batch.chunks):
            self._marshal(ticket, index, chunk, out)
            out += 4 * chunk.outputs
        return ticket

    def result(self, ticket: _Ticket) -> list[Output]:
        if self._handle is None:
            raise RuntimeError("the native executor is closed")
        for file in self._files:
            file.verify_unchanged()
        status = self._forward(self._handle, self._chunks_at, len(ticket.chunks), self._error_at)
        if status:
            abi.fail(status, self._error)
        outputs = []
        tokens, at = self._tokens, 0
        for index, chunk in enumerate(ticket.chunks):
            end = at + chunk.outputs
            want = chunk.want
            if want == Want.TOKEN and not ticket.tops:
                outputs.append(Output(chunk.seq, tuple(tokens[at:end])))
            elif not want:
                outputs.append(Output(chunk.seq))
            else:
                outputs.append(self._output(ticket, index, chunk, at))
            at = end
        return outputs

    def interrupt(self) -> None:
        """From any thread: the batch under way fails with abi.Interrupted at its next layer."""
        with self._lock:
            if self._handle is not None:
                self._core.hd_model_interrupt(self._handle)

    def close(self) -> None:
        """Frees the model. Not while a batch runs."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            self._core.hd_model_free(handle)
        for file in self._files:
            file.close()

    def memory(self) -> Memory:
        values = (c_int64 * 3)()
        at = ctypes.addressof(values)
        self._core.hd_model_memory(self._handle, at, at + 8, at + 16)
        return Memory(*values)

    def experts(self) -> PackedExperts:
        values = (c_int64 * 3)()
        at = ctypes.addressof(values)
        self._core.hd_model_experts(self._handle, at, at + 8, at + 16)
        return PackedExperts(*values)

    def tap(self, report: Callable[[str, int, int, array[float]], None] | None) -> None:
        """Reports activations of the following batches: name, rows, columns, row-major values. None ends it."""

        def call(context: object, name: bytes, rows: int, cols: int, data: int) -> None:
            assert report is not None
            values = array("f")
            values.frombytes(ctypes.string_at(data, 4 * rows * cols))
            report(name.decode(), rows, cols, values)

        self._tap = abi.Tap(call) if report is not None else abi.Tap()
        self._core.hd_model_tap(self._handle, self._tap, None)

    def _marshal(self, ticket: _Ticket, index: int, chunk: Chunk, out: int) -> None:
        """Fills the structures of one chunk. Field order: PACK_CHUNK and PACK_SAMPLING follow herder.h."""
        if chunk.images:
            raise UnsupportedModel("the native core sees no images: load the model with runtime='torch'")
        tokens, pages = int_array(chunk.tokens), int_array(chunk.pages)
        if tokens is not chunk.tokens or pages is not chunk.pages:
            ticket.alive += (tokens, pages)
        tokens_at, count = tokens.buffer_info()
        pages_at, n_pages = pages.buffer_info()
        local_at = 0
        if chunk.local_pages:
            local_pages = int_array(chunk.local_pages)
            ticket.alive.append(local_pages)
            local_at = local_pages.buffer_info()[0]
            assert len(local_pages) == n_pages
        bf16 = chunk.prompt and self._limits.prompts_apart
        want = chunk.want
        if not want:
            abi.PACK_CHUNK.pack_into(
                self._chunks, index * abi.PACK_CHUNK.size,
                tokens_at, count, chunk.start, pages_at, local_at, n_pages, 0, 0, bf16, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            )  # fmt: skip
            return
        sampling_at = targets_at = logprobs_at = top_ids_at = top_logprobs_at = logits_at = scores_at = hidden_at = 0
        outputs = chunk.outputs
        if want & Want.TOKEN:
            sampling_at = self._marshal_sampling(ticket, index, chunk)
            assert chunk.sampling is not None
            top = chunk.sampling.logprobs
            if top is not None:
                ticket.tops += [None] * (index - len(ticket.tops))
                arrays = (_floats(outputs), array("i", bytes(4 * outputs * top)), _floats(outputs * top))
                ticket.tops.append(arrays)
                logprobs_at, top_ids_at, top_logprobs_at = (values.buffer_info()[0] for values in arrays)
        if want != Want.TOKEN:
            vocab = self._limits.vocab
            logits_at = _result(ticket.logits, index, outputs * vocab if want & Want.LOGITS else 0)
            scores_at = _result(ticket.scores, index, outputs if want & Want.SCORE else 0)
            hidden_at = _result(ticket.hidden, index, outputs * self._dim if want & Want.HIDDEN else 0)
            if want & Want.SCORE:
                targets = int_array(chunk.targets)
                ticket.alive.append(targets)
                targets_at = targets.buffer_info()[0]
        abi.PACK_CHUNK.pack_into(
            self._chunks, index * abi.PACK_CHUNK.size,
            tokens_at, count, chunk.start, pages_at, local_at, n_pages, outputs, want, bf16, sampling_at,
            targets_at, out, logprobs_at, top_ids_at, top_logprobs_at, logits_at, scores_at, hidden_at,
        )  # fmt: skip

    def _marshal_sampling(self, ticket: _Ticket, index: int, chunk: Chunk) -> int:
        sampling = chunk.sampling
        assert sampling is not None
        n_bias = bias_ids_at = bias_values_at = mask_at = history_at = n_history = 0
        if sampling.logit_bias:
            ids, values = self._biases(sampling)
            ticket.alive += (ids, values)
            bias_ids_at, n_bias = ids.buffer_info()
            bias_values_at = values.buffer_info()[0]
        if chunk.history:
            history = int_array(chunk.history)
            ticket.alive.append(history)
            history_at, n_history = history.buffer_info()
        if chunk.mask is not None:
            mask = array("I", chunk.mask)
            ticket.alive.append(mask)
            mask_at = mask.buffer_info()[0]
        abi.PACK_SAMPLING.pack_into(
            self._samplings, index * abi.PACK_SAMPLING.size,
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty,
            sampling.presence_penalty, sampling.frequency_penalty, chunk.seed, chunk.step, n_bias, bias_ids_at,
            bias_values_at, mask_at, history_at, n_history, chunk.prompt_tokens if n_history else 0,
            sampling.logprobs or 0,
        )  # fmt: skip
        return self._samplings_at + index * abi.PACK_SAMPLING.size

    def _biases(self, sampling: Sampling) -> tuple[array[int], array[float]]:
        """A request's biases as arrays, made once: every step of it comes with the same Sampling object."""
        known = self._bias.get(id(sampling))
        if known is None or known[0] is not sampling:
            if len(self._bias) >= 2 * BATCH_CHUNKS:
                self._bias.clear()
            ids = array("i", [token for token, _ in sampling.logit_bias])
            known = self._bias[id(sampling)] = (sampling, ids, array("f", [bias for _, bias in sampling.logit_bias]))
        return known[1], known[2]

    def _output(self, ticket: _Ticket, index: int, chunk: Chunk, at: int) -> Output:
        tokens = tuple(self._tokens[at : at + chunk.outputs]) if chunk.want & Want.TOKEN else ()
        logprobs: list[TokenLogprob] = []
        top = ticket.tops[index] if index < len(ticket.tops) else None
        if top is not None:
            values, ids, alternatives = top
            width = len(ids) // len(values)
            for row, token in enumerate(tokens):
                pairs = slice(row * width, (row + 1) * width)
                logprobs.append(
                    TokenLogprob(token, values[row], tuple(zip(ids[pairs], alternatives[pairs], strict=True)))
                )
        return Output(
            chunk.seq,
            tokens,
            tuple(logprobs),
            logits=_wanted(ticket.logits, index),
            scores=_wanted(ticket.scores, index) or (),
            hidden=_wanted(ticket.hidden, index),
        )


def load_model(
    files: ModelFiles,
    *,
    context: int,
    kv_pages: int,
    kv_local_pages: int = 0,
    compute: Compute = "auto",
    prompt_dtype: PromptDtype = "auto",
    threads: int = 0,
    isa: str | None = None,
    expert_memory: int = 0,
    progress: Progress | None = None,
    library_path: str | None = None,
) -> NativeExecutor:
    """Repacks a model's tensors into the core's layouts and makes it ready to run.

    context: longest sequence, tokens. kv_pages: pages of the KV store, PAGE_TOKENS tokens each. kv_local_pages: of the
    store of the layers of bounded reach; 0: they share the other one. compute: "auto" keeps quantized weights
    quantized, "float32" expands weights, activations and KV entries. prompt_dtype: what products of prompt tokens with
    quantized matrices are computed in; "auto" is bfloat16 where `isa` is "amx", else int8; only that with float32.
    threads: 0 = one per usable core. isa: one of abi.cpu_info()["isas"]; None picks the best. progress is called on
    this thread.

    Each tensor's pages of the mapped file are given back as soon as it is packed, so that the file and its packed copy
    are not in memory together. Experts that a mapped file holds are packed when a token is first routed to them, so the
    executor keeps those files open (the caller may close `files`); expert_memory: bytes that such experts may take, 0
    for no limit, beyond which those used longest ago are forgotten until they are needed again.
    What `herder pack` has stored (runtime/prepacked.py) is mapped and used where it lies, experts included; the
    executor keeps that file open.
    An image encoder and the layers that attend to it are left out. Raises ModelFileError, UnsupportedModel, OutOfMemory
    or UsageError.
    """
    config = files.config
    core = abi.library(library_path)
    prompts = choose(files, prompt_dtype, float32=compute == "float32", isa=isa, library_path=library_path)
    shape = core_shape(
        config,
        context=context,
        kv_pages=kv_pages,
        kv_local_pages=kv_local_pages,
        float32=compute == "float32",
        threads=threads,
        expert_memory=expert_memory,
    )
    error = abi.Error()
    model = c_void_p()
    name = isa.encode() if isa is not None else None
    status = core.hd_model_create(
        ctypes.addressof(shape.config), name, ctypes.addressof(model), ctypes.addressof(error)
    )
    if status:
        abi.fail(status, error, UsageError)
    handle = model.value
    assert handle is not None
    try:
        kept = pack(core, handle, files, progress, compute == "float32")
    except BaseException:
        core.hd_model_free(handle)
        raise
    limits = Limits(
        pages=kv_pages,
        context=context,
        batch_tokens=batch_tokens(config),
        batch_chunks=BATCH_CHUNKS,
        vocab=config.vocab,
        local_pages=kv_local_pages,
        local=config.local if kv_local_pages else None,
        prompts_apart=prompts == "bfloat16",
    )
    return NativeExecutor(core, handle, limits, config.dim, kept, prompts)


def batch_tokens(config: ModelConfig) -> int:
    """Tokens in one batch, at most: as many as keep the float32 activations of a layer within WORK_BYTES."""
    width = 2 * config.ffn_dim
    if (moe := config.experts) is not None:  # a row for each expert of a token
        slots = moe.active + (moe.shared_ffn_dim > 0)
        width = max(width, 2 * slots * (max(moe.ffn_dim, moe.shared_ffn_dim) + config.dim))
    per_token = 4 * (width + 4 * config.dim + 2 * (config.heads + config.kv_heads) * config.head_dim)
    return max(128, min(BATCH_TOKENS, WORK_BYTES // per_token // 32 * 32))


def _floats(count: int) -> array[float]:
    return array("f", [0.0]) * count


def _result(results: list[array[float] | None], index: int, values: int) -> int:
    """Room for a chunk's results of one kind, at its place in the list; its address, 0 when none are wanted."""
    if not values:
        return 0
    results += [None] * (index - len(results))
    room = _floats(values)
    results.append(room)
    return room.buffer_info()[0]


def _wanted(results: list[array[float] | None], index: int) -> array[float] | None:
    return results[index] if index < len(results) else None
