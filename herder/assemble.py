"""load(model) -> LLM: the one place that joins policy to mechanism.

A name becomes files (weights/store), the files a model in the native core or in PyTorch (runtime) while, on another
thread, the same files become a tokenizer and a chat format; engine and LLM put them together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from herder.cache.plan import BATCH_TOKENS, SEQUENCES, KVPlan, plan_kv
from herder.core import machine
from herder.core.errors import HerderError, ModelFileError, TemplateError, UnsupportedModel, UsageError
from herder.core.request import Sampling

if TYPE_CHECKING:
    from herder.core.batch import Executor
    from herder.llm import LLM
    from herder.runtime.prompts import PromptDtype
    from herder.weights.source import ModelFiles

T = TypeVar("T")
Runtime = Literal["native", "torch"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it, of how much (bytes)

DTYPES: dict[str, tuple[str, ...]] = {
    "native": ("auto", "float32"),
    "torch": ("auto", "float32", "bfloat16", "float16"),
}
CHAT_SAMPLING = Sampling(temperature=0.6, top_p=0.9)  # Meta's generation code for Llama (llama3/generation.py)


def load(
    model: str | Path = "smollm2",
    *,
    runtime: Runtime = "native",
    device: str = "auto",
    dtype: Dtype = "auto",
    prompt_dtype: PromptDtype = "auto",
    context: int | None = None,
    kv_memory: int | None = None,
    threads: int = 0,
    speculate: int = 0,
    template: str | None = None,
    chat_format: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> LLM:
    """Loads a model: a short name (`smollm2`), a path, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`).

    runtime: "native" is Herder's core, on the CPU; "torch" is PyTorch, on the CPU or a GPU, and runs images too.
    device: of "torch": "cpu", "cuda", "cuda:1"; "auto" takes a GPU where there is one.
    dtype: "auto" computes quantized weights as they are in the native core, and is bfloat16 on a GPU and float32 on the
    CPU in PyTorch; "float32" expands everything to float32; "bfloat16" and "float16" only in PyTorch.
    prompt_dtype: arithmetic of prompts with quantized weights in the native core: "bfloat16" is faster where the CPU
    has AMX and rounds less, and is what "auto" takes there; "int8" gives the same bits on every CPU.
    context, kv_memory (bytes): see cache.plan.plan_kv. threads: 0 = one per core this process may use.
    speculate: most tokens to guess ahead from the text itself (0 = off); changes the speed, never the text (in PyTorch,
    as far as rounding goes).
    template: a Jinja chat template to use instead of the model's own; chat_format: the name of a format that Herder has
    in code (chat.load.NAMES), likewise. offline: never use the network.
    progress: called while the model is fetched and packed.

    Raises HerderError (core.errors names the kinds): no such model, a damaged or unsupported file, not enough memory.
    """
    check_runtime(runtime, device, dtype, prompt_dtype)
    if threads < 0:
        raise UsageError(f"threads is {threads}: must be 0 (one per usable core) or more")
    if speculate < 0:
        raise UsageError(f"speculate is {speculate}: must be 0 (off) or more")
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    path = resolve(str(model), offline=offline, progress=progress)
    with open_model(path) as files:
        if runtime == "torch":
            mechanism = _torch(files, dtype, device, threads)
        else:
            mechanism = _native(files, dtype, threads, prompt_dtype)
        return _assemble(files, mechanism, context, kv_memory, speculate, template, chat_format, progress)


class Footprint(NamedTuple):
    """What loading a model would take. weights, kv: bytes. context: tokens."""

    weights: int
    kv: int
    context: int


def footprint(
    files: ModelFiles,
    *,
    runtime: str = "native",
    device: str = "auto",
    dtype: str = "auto",
    context: int | None = None,
    kv_memory: int | None = None,
    available: int | None = None,
) -> Footprint:
    """The memory that load() with the same options would use where `available` bytes are free (None: as many as there
    are now). Raises what load() raises for a model that does not fit."""
    check_runtime(runtime, device, dtype)
    mechanism = _torch(files, dtype, device, 0) if runtime == "torch" else _native(files, dtype, 0)
    free = [value for value in (available, mechanism.available) if value is not None]
    kv = plan_kv(
        files.config,
        mechanism.weights,
        context=context,
        kv_memory=kv_memory,
        bytes_per_value=mechanism.bytes_per_value,
        available=min(free, default=None),
        batch_tokens=mechanism.batch_tokens,
        sequences=mechanism.sequences,
    )
    return Footprint(mechanism.weights, kv.bytes, kv.context)


def check_runtime(runtime: str, device: str = "auto", dtype: str = "auto", prompt_dtype: str = "auto") -> None:
    """Raises UsageError for a runtime that is none, or a device, dtype or prompt_dtype that it does not have."""
    from herder.runtime import prompts

    if runtime not in DTYPES:
        raise UsageError(f"runtime is {runtime!r}: must be {' or '.join(map(repr, DTYPES))}")
    if dtype not in DTYPES[runtime]:
        known = ", ".join(map(repr, DTYPES[runtime]))
        where = "; runtime='torch' has it" if dtype in DTYPES["torch"] else ""
        raise UsageError(f"dtype is {dtype!r}: runtime {runtime!r} has {known}{where}")
    if runtime == "native" and device not in ("auto", "cpu"):
        raise UsageError(f"device is {device!r}: runtime 'native' runs on the CPU; runtime='torch' runs on GPUs")
    prompts.check(prompt_dtype, float32=runtime == "native" and dtype == "float32")
    if prompt_dtype != "auto" and runtime != "native":
        raise UsageError(f"prompt_dtype is {prompt_dtype!r}: runtime {runtime!r} has none, leave it at 'auto'")


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A runtime about to load a model. weights: bytes they will take. bytes_per_value: of a KV entry. available: bytes
    of memory, None if unknown. batch_tokens, sequences: what it runs in one batch. start: loads the model."""

    weights: int
    bytes_per_value: int
    available: int | None
    start: Callable[[KVPlan, Callable[[int, int], None] | None], Executor]
    batch_tokens: int = BATCH_TOKENS
    sequences: int = SEQUENCES


def _native(files: ModelFiles, dtype: str, threads: int, prompt_dtype: PromptDtype = "auto") -> Mechanism:
    from herder.runtime.native import BATCH_CHUNKS, batch_tokens, load_model

    available = machine.memory().available
    weights = native_bytes(files, dtype)

    def start(kv: KVPlan, progress: Callable[[int, int], None] | None) -> Executor:
        room = None if available is None else max(0, available - weights.resident - kv.bytes)
        compute: Literal["auto", "float32"] = "float32" if dtype == "float32" else "auto"
        return load_model(
            files,
            context=kv.context,
            kv_pages=kv.pages,
            kv_local_pages=kv.local_pages,
            compute=compute,
            prompt_dtype=prompt_dtype,
            threads=threads,
            expert_memory=0 if room is None or weights.experts <= room else max(room, weights.active),
            progress=progress,
        )

    return Mechanism(
        weights.resident + weights.active,
        4 if dtype == "float32" else 2,
        available,
        start,
        batch_tokens(files.config),
        BATCH_CHUNKS,
    )


class NativeBytes(NamedTuple):
    """Bytes of weights in the native core. resident: those that are there from the beginning. experts: those that are
    packed when a token is first routed to them, and forgotten again when memory is short. active: of these, the ones
    that a single token needs."""

    resident: int
    experts: int
    active: int


def native_bytes(files: ModelFiles, dtype: str = "auto") -> NativeBytes:
    """What the native core would hold of a model, as it packs weights or, with dtype "float32", expands them."""
    from herder.runtime.packing import lazy, packed_bytes, wanted

    resident = experts = 0
    for tensor in files.tensors:
        if not wanted(tensor, files.config):
            continue
        size = packed_bytes(tensor, float32=dtype == "float32")
        if lazy(tensor):
            experts += size
        else:
            resident += size
    moe = files.config.experts
    return NativeBytes(resident, experts, experts * moe.active // moe.count if moe is not None else 0)


def _torch(files: ModelFiles, dtype: str, device: str, threads: int) -> Mechanism:
    try:
        from herder.runtime import torch
    except ImportError as error:
        if error.name != "torch":
            raise
        raise UnsupportedModel("runtime 'torch' needs PyTorch: pip install 'herder[torch]'") from None
    place = torch.choose_device(device)
    kind = torch.choose_dtype(dtype, place, files)

    def start(kv: KVPlan, progress: Callable[[int, int], None] | None) -> Executor:
        return torch.load_model(
            files,
            context=kv.context,
            kv_pages=kv.pages,
            kv_local_pages=kv.local_pages,
            dtype=dtype,  # type: ignore[arg-type]  # check_runtime has seen it
            device=device,
            threads=threads,
            progress=progress,
        )

    return Mechanism(
        sum(tensor.rows * tensor.cols for tensor in files.tensors) * kind.itemsize,
        kind.itemsize,
        torch.available_memory(place),
        start,
        torch.BATCH_TOKENS[place.type],
        torch.BATCH_CHUNKS[place.type],
    )


def recommended_sampling(files: ModelFiles) -> Sampling:
    """What the model's makers recommend for chats: generation_config.json with do_sample (Hugging Face), or the keys
    general.sampling.* (GGUF); CHAT_SAMPLING where the files say nothing. Raises ModelFileError for impossible values.

    Not followed: GGUF's penalties, XTC and Mirostat, which mean something else than the penalties here or nothing.
    """
    generation = files.metadata.get("generation_config.json")
    if generation is not None:
        given = generation if generation.get("do_sample") else {}
        names = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    else:
        given = files.metadata
        keys = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
        names = {name: f"general.sampling.{key}" for name, key in keys.items()}
    values = {name: given[key] for name, key in names.items() if given.get(key) is not None}
    if not values:
        return CHAT_SAMPLING
    try:
        return Sampling(**values)
    except (HerderError, TypeError) as error:
        raise ModelFileError(f"{files.path} recommends a sampling that is none ({error}): correct the file") from None


def _assemble(
    files: ModelFiles,
    mechanism: Mechanism,
    context: int | None,
    kv_memory: int | None,
    speculate: int,
    template: str | None,
    chat_name: str | None,
    progress: Progress | None,
) -> LLM:
    config = files.config
    kv = plan_kv(
        config,
        mechanism.weights,
        context=context,
        kv_memory=kv_memory,
        bytes_per_value=mechanism.bytes_per_value,
        available=mechanism.available,
        batch_tokens=mechanism.batch_tokens,
        sequences=mechanism.sequences,
    )

    def pack() -> Executor:
        report = None if progress is None else lambda done, total: progress("Loading", done, total)
        return mechanism.start(kv, report)

    packing = Background(pack, "herder-load")
    try:
        from herder.chat.load import load_chat_format
        from herder.engine.engine import Engine
        from herder.engine.scheduler import Policy
        from herder.llm import LLM
        from herder.text.load import load_tokenizer

        tokenizer = load_tokenizer(files.metadata if files.kind == "gguf" else files.path)
        chat_sampling = recommended_sampling(files)
        templates, refusal = files.chat_templates, None
        try:
            chat_format = load_chat_format(tokenizer, templates, override=template, name=chat_name, model=files.name)
        except TemplateError as error:
            if template is not None:
                raise
            chat_format, refusal = None, error  # what needs no chat format works all the same
    except BaseException:
        packing.abandon(lambda executor: executor.close())
        raise
    engine = Engine(packing.result(), Policy(speculate=speculate))
    return LLM(
        engine=engine,
        tokenizer=tokenizer,
        config=config,
        chat_format=chat_format,
        chat_refusal=refusal,
        chat_sampling=chat_sampling,
        stop_ids=files.stop_token_ids,
    )


class Background(Generic[T]):
    """A function running on a thread of its own."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name=name, daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """Waits, and gives what the function returned or raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def abandon(self, discard: Callable[[T], None]) -> None:
        """Waits, because what the function reads must outlive it, and discards what it returned."""
        self._thread.join()
        if self._value is not None:
            discard(self._value)
