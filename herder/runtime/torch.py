"""The torch executor: batches to the decoder of herder/model and results back, on the CPU or a CUDA device.

All chunks of a batch are one forward pass over their tokens, one after another; only attention tells them apart. Their
results depend on the company by rounding: PyTorch's kernels add in an order that follows the shape of their input.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herder.core import machine
from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Output, Want
from herder.core.errors import NumericError, OutOfMemory, UsageError
from herder.core.request import TokenLogprob
from herder.formats.table import BF16
from herder.model.build import Progress, build
from herder.model.llama import Llama
from herder.model.taps import tapped
from herder.runtime import abi
from herder.runtime.torch_images import EncoderCache
from herder.runtime.torch_kv import BatchCache, PageStore
from herder.runtime.torch_sampler import Sampler
from herder.weights.source import ModelFiles

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BATCH_CHUNKS = {"cpu": 64, "cuda": 256}
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}
OUTPUT_ROWS = 64  # logits computed at a time


class Memory(NamedTuple):
    """Bytes held, on the device. The work space of a batch comes and goes."""

    weights: int
    kv: int


class TorchExecutor:
    """Runs batches on one model. launch() keeps the batch, result() runs it."""

    def __init__(self, model: Llama, store: PageStore, limits: Limits, device: torch.device) -> None:
        self._model: Llama | None = model
        self._store: PageStore | None = store
        self._limits = limits
        self._device = device
        self._images = EncoderCache(model) if limits.images else None
        self._interrupt = threading.Event()
        self._taps = ExitStack()

    @property
    def limits(self) -> Limits:
        return self._limits

    def launch(self, batch: Batch) -> Batch:
        return batch

    def result(self, ticket: Batch) -> list[Output]:
        if self._model is None or self._store is None:
            raise RuntimeError("the torch executor is closed")
        self._interrupt.clear()
        for chunk in ticket.chunks:
            _check(chunk, self._limits, self._model.model.embed_tokens.num_embeddings)
        with torch.inference_mode(), _memory("use a smaller context, or fewer requests at a time"):
            cache = BatchCache(self._store, ticket.chunks, self._device, self._stop)
            hidden = self._forward(self._model, ticket, cache)
            results = [_Result(chunk, self._limits.vocab) for chunk in ticket.chunks]
            self._find_damage(results, cache, hidden)
            self._fill(self._model, results, cache, hidden)
        return [result.output() for result in results]

    def interrupt(self) -> None:
        """From any thread: the batch under way fails with abi.Interrupted at its next layer."""
        self._interrupt.set()

    def close(self) -> None:
        """Frees the model. Not while a batch runs."""
        self._model = self._store = self._images = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def memory(self) -> Memory:
        assert self._model is not None and self._store is not None
        return Memory(sum(p.numel() * p.element_size() for p in self._model.parameters()), self._store.bytes)

    def tap(self, report: Callable[[str, int, int, array[float]], None] | None) -> None:
        """Reports activations of the following batches: name, rows, columns, row-major values. None ends it. The names
        are in herder/model/taps.py."""

        def show(name: str, values: Tensor) -> None:
            assert report is not None
            rows, cols = values.shape
            report(name, rows, cols, array("f", values.cpu().numpy().tobytes()))

        self._taps.close()
        if report is not None:
            assert self._model is not None
            self._taps.enter_context(tapped(self._model, show))

    def _stop(self) -> None:
        if self._interrupt.is_set():
            raise abi.Interrupted("the batch was interrupted")

    def _forward(self, model: Llama, batch: Batch, cache: BatchCache) -> Tensor:
        """Hidden states of the batch's tokens: (tokens, dim)."""
        tokens = np.concatenate([np.asarray(chunk.tokens, np.int64) for chunk in batch.chunks])
        positions = np.concatenate([np.arange(c.start, c.start + len(c.tokens)) for c in batch.chunks])
        images = None if self._images is None else self._images.images(batch)
        out: Tensor = model.model(self._tensor(tokens), self._tensor(positions), cache, images)
        return out

    def _find_damage(self, results: list[_Result], cache: BatchCache, hidden: Tensor) -> None:
        """Every token attends to itself and adds to its own state: NaN anywhere in its pass is NaN at the end."""
        finite = hidden.isfinite().all(-1).cpu().numpy()
        if finite.all():
            return
        for index, result in enumerate(results):
            if not finite[cache.starts[index] : cache.starts[index + 1]].all():
                cache.clear(index)
                result.error = _damaged(hidden.dtype)

    def _fill(self, model: Llama, results: list[_Result], cache: BatchCache, hidden: Tensor) -> None:
        """Logits of all output positions together, a few at a time, and what is wanted of them."""
        rows: list[tuple[_Result, int, int]] = []  # result, output position, token of the batch
        for index, result in enumerate(results):
            first = int(cache.starts[index + 1]) - result.chunk.outputs
            if result.error is None and result.chunk.want:
                rows += [(result, output, first + output) for output in range(result.chunk.outputs)]
        for start in range(0, len(rows), OUTPUT_ROWS):
            part = rows[start : start + OUTPUT_ROWS]
            states = hidden[self._tensor(np.array([token for _, _, token in part]))]
            wants = Want.NOTHING
            for result, _, _ in part:
                wants |= result.chunk.want
            if wants & Want.HIDDEN:
                values = states.float().cpu().numpy()
                for (result, _, _), row in zip(part, values, strict=True):
                    if result.chunk.want & Want.HIDDEN:
                        result.hidden.frombytes(row.tobytes())
            if wants & ~Want.HIDDEN:
                self._fill_from_logits(part, model.logits(states), wants)

    def _fill_from_logits(self, part: list[tuple[_Result, int, int]], logits: Tensor, wants: Want) -> None:
        finite = logits.isfinite().all(-1).cpu().numpy()
        if wants & Want.SCORE:
            targets = [r.chunk.targets[output] if r.chunk.want & Want.SCORE else 0 for r, output, _ in part]
            chosen = logits.gather(-1, self._tensor(np.array(targets))[:, None])[:, 0]
            scores = (chosen - logits.logsumexp(-1)).cpu().numpy()
        host = logits.cpu().numpy() if wants & (Want.TOKEN | Want.LOGITS) else None
        for at, (result, output, _) in enumerate(part):
            want = result.chunk.want
            if not finite[at] and want & ~Want.HIDDEN:
                result.error = _damaged(logits.dtype)
            if result.error is not None:
                continue
            if want & Want.SCORE:
                result.scores.append(scores[at])
            if host is not None and want & Want.LOGITS:
                result.logits.frombytes(host[at].tobytes())
            if host is not None and want & Want.TOKEN:
                result.choose(output, host[at])

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


@dataclass(slots=True)
class _Result:
    """What a chunk's output positions have given so far."""

    chunk: Chunk
    vocab: int
    sampler: Sampler | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    logits: array[float] = field(default_factory=lambda: array("f"))
    scores: array[float] = field(default_factory=lambda: array("f"))
    hidden: array[float] = field(default_factory=lambda: array("f"))
    error: NumericError | None = None

    def choose(self, output: int, logits: NDArray[np.float32]) -> None:
        if self.sampler is None:
            self.sampler = Sampler(self.chunk, self.vocab)
        try:
            token, logprob = self.sampler.choose(output, logits)
        except NumericError as error:
            self.error = error
            return
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)

    def output(self) -> Output:
        if self.error is not None:
            return Output(self.chunk.seq, error=self.error)
        return Output(
            self.chunk.seq,
            tuple(self.tokens),
            tuple(self.logprobs),
            logits=self.logits or None,
            scores=self.scores or (),
            hidden=self.hidden or None,
        )


def load_model(
    files: ModelFiles,
    *,
    context: int,
    kv_pages: int,
    kv_local_pages: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    threads: int = 0,
    progress: Progress | None = None,
) -> TorchExecutor:
    """Loads a model and makes it ready to run.

    context: longest sequence, tokens. kv_pages: pages of the KV store, PAGE_TOKENS tokens each. kv_local_pages: pages
    of the layers of bounded reach; 0: they have kv_pages like the others. dtype: what weights, activations and KV
    entries are kept and computed in; for "auto" see choose_dtype. device: "cpu", "cuda", "cuda:1", ...; "auto" is CUDA
    where there is one. threads: of PyTorch in this process; 0 leaves it as it is.

    Raises ModelFileError, UnsupportedModel, OutOfMemory or UsageError.
    """
    config = files.config
    place = choose_device(device)
    kind = choose_dtype(dtype, place, files)
    if threads:
        torch.set_num_threads(threads)
    local = config.local if kv_local_pages else None
    with _memory("use a smaller model or context, or runtime='native', which keeps quantized weights quantized"):
        model = build(files, dtype=kind, device=place, context=context, progress=progress)
        store = PageStore(config, kv_pages, kv_local_pages if local else 0, kind, place)
    limits = Limits(
        pages=kv_pages,
        context=context,
        batch_tokens=BATCH_TOKENS[place.type],
        batch_chunks=BATCH_CHUNKS[place.type],
        vocab=config.vocab,
        local_pages=kv_local_pages if local else 0,
        local=local,
        images=config.vision is not None,
        rows=config.embedding_rows or 0,
    )
    return TorchExecutor(model, store, limits, place)


def choose_device(name: str) -> torch.device:
    """Raises UsageError for a device that is not there, or that this runtime does not use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {name!r}: must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {name!r}, but PyTorch {torch.__version__} finds no CUDA device: use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return device


def choose_dtype(name: str, device: torch.device, files: ModelFiles) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA, and on a CPU that multiplies it if the file's matrices are bfloat16; else float32.

    Raises UsageError for another name.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        # With AMX, bfloat16 is up to four times as fast as float32 for many tokens and never slower; without such
        # instructions PyTorch converts every operand.
        stored = all(source.format == BF16 for source in files.tensors if source.rows > 1)
        fast = bool({"amx_bf16", "avx512_bf16", "bf16"} & set(abi.cpu_info()["features"]))
        return torch.bfloat16 if device.type == "cuda" or (stored and fast) else torch.float32
    if name not in known:
        raise UsageError(f"dtype is {name!r}: must be 'auto', {', '.join(map(repr, known))}")
    return known[name]


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device, None where that is not known."""
    if device.type == "cpu":
        return machine.memory().available
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


@contextmanager
def _memory(remedy: str) -> Iterator[None]:
    """Turns PyTorch's exhausted memory, of a device or of the CPU, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).split("\n")[0]
        # The CPU's exhausted memory has no class of its own.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in text:
            raise
        raise OutOfMemory(f"PyTorch is out of memory ({text}): {remedy}") from None


def _check(chunk: Chunk, limits: Limits, tokens: int) -> None:
    """Finds mistakes of ours before a CUDA kernel meets them, after which a process could only be restarted."""
    end = chunk.start + len(chunk.tokens)
    assert len(chunk.tokens) > 0 and chunk.start >= 0 and end <= limits.context, "tokens beyond the context"
    assert min(chunk.tokens) >= 0 and max(chunk.tokens) < tokens, "a token outside the vocabulary"
    tables = [(chunk.pages, limits.pages)]
    if limits.local_pages:
        tables.append((chunk.local_pages, limits.local_pages))
    for table, size in tables:
        assert len(table) * PAGE_TOKENS >= end and max(table) < size, "pages that do not hold the positions"


def _damaged(dtype: torch.dtype) -> NumericError:
    cause = ", or too large for float16: use dtype bfloat16" if dtype == torch.float16 else ""
    return NumericError(f"the forward pass gave NaN or infinity: the weights are damaged{cause}")
