"""load(model) -> LLM: the one place that joins policy to mechanism.

A name becomes files (weights/store), the files a model in the native core (runtime/native) while, on another thread,
the same files become a tokenizer and a chat format; engine and LLM put them together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from herder.core import machine
from herder.core.batch import PAGE_TOKENS
from herder.core.config import ModelConfig
from herder.core.errors import HerderError, ModelFileError, OutOfMemory, TemplateError, UnsupportedModel, UsageError
from herder.core.request import Sampling
from herder.core.sizes import bytes_text

if TYPE_CHECKING:
    from herder.llm import LLM
    from herder.weights.source import ModelFiles

T = TypeVar("T")
Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it, of how much (bytes)

DEFAULT_CONTEXT = 8192
CHAT_SAMPLING = Sampling(temperature=0.6, top_p=0.9)  # Meta's generation code for Llama (llama3/generation.py)


class KVPlan(NamedTuple):
    """context: the longest sequence, tokens. pages: of the KV cache, shared by all sequences. bytes: what they take."""

    context: int
    pages: int
    bytes: int


def load(
    model: str | Path = "smollm2",
    *,
    runtime: Literal["native"] = "native",
    dtype: Literal["auto", "float32"] = "auto",
    context: int | None = None,
    kv_memory: int | None = None,
    threads: int = 0,
    speculate: int = 0,
    template: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> LLM:
    """Loads a model: a short name (`smollm2`), a path, or a Hugging Face id (`org/name`, `org/name:Q4_K_M`).

    dtype: "auto" computes quantized weights as they are, "float32" expands everything to float32.
    context, kv_memory (bytes): see plan_kv. threads: 0 = one per core this process may use.
    speculate: most tokens to guess ahead from the text itself (0 = off); changes the speed, never the text.
    template: a Jinja chat template to use instead of the model's own. offline: never use the network.
    progress: called while the model is fetched and packed.

    Raises HerderError (core.errors names the kinds): no such model, a damaged or unsupported file, not enough memory.
    """
    check_runtime(runtime)
    if dtype not in ("auto", "float32"):
        raise UsageError(f"dtype is {dtype!r}: must be 'auto' (as stored) or 'float32'")
    if threads < 0:
        raise UsageError(f"threads is {threads}: must be 0 (one per usable core) or more")
    if speculate < 0:
        raise UsageError(f"speculate is {speculate}: must be 0 (off) or more")
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    path = resolve(str(model), offline=offline, progress=progress)
    with open_model(path) as files:
        return _assemble(files, dtype, context, kv_memory, threads, speculate, template, progress)


def check_runtime(runtime: str) -> None:
    """Raises UnsupportedModel for a runtime that is planned, UsageError for one that is not."""
    if runtime == "torch":
        raise UnsupportedModel("runtime 'torch' is not there yet: use runtime='native'")
    if runtime != "native":
        raise UsageError(f"runtime is {runtime!r}: must be 'native'")


def plan_kv(
    config: ModelConfig,
    file_bytes: int,
    *,
    context: int | None = None,
    kv_memory: int | None = None,
    bytes_per_value: int = 2,
    available: int | None = None,
) -> KVPlan:
    """How long a sequence may be, and how many pages hold the KV entries of all sequences together.

    context None: the model's own, at most DEFAULT_CONTEXT, and cut to what half of the memory left beside the weights
    holds. kv_memory None: pages for one sequence of the full context, which shorter sequences share. available: bytes
    of free memory, None if unknown. Raises UsageError for what the model cannot do, OutOfMemory with the numbers for
    what the machine cannot.
    """
    if context is not None and not 1 <= context <= config.context:
        raise UsageError(f"context is {context}: must be between 1 and {config.context}, which this model was made for")
    page = config.kv_bytes(PAGE_TOKENS, bytes_per_value)
    if kv_memory is not None and kv_memory < page:
        raise UsageError(f"kv_memory is {kv_memory}: must hold at least one page of {PAGE_TOKENS} tokens, {page} bytes")
    left = None if available is None else max(0, available - file_bytes)
    wanted = context or min(config.context, DEFAULT_CONTEXT)
    if kv_memory is not None:
        pages = kv_memory // page
        wanted = min(wanted, pages * PAGE_TOKENS)
        if context is not None and context > wanted:
            raise UsageError(
                f"kv_memory of {bytes_text(kv_memory)} holds {wanted} tokens, less than the context of {context}: "
                f"give at least {bytes_text(page * -(-context // PAGE_TOKENS))}"
            )
    else:
        pages = -(-wanted // PAGE_TOKENS)
        if context is None and left is not None:
            pages = max(1, min(pages, left // 2 // page))
            wanted = min(wanted, pages * PAGE_TOKENS)
    need = pages * page
    if left is not None and need > left:
        raise OutOfMemory(
            f"the weights take {bytes_text(file_bytes)} and {wanted} tokens of KV cache {bytes_text(need)}, but "
            f"{bytes_text(available or 0)} of memory are free: use a smaller context, model or quantization"
        )
    return KVPlan(wanted, pages, need)


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
    dtype: Literal["auto", "float32"],
    context: int | None,
    kv_memory: int | None,
    threads: int,
    speculate: int,
    template: str | None,
    progress: Progress | None,
) -> LLM:
    from herder.runtime.native import NativeExecutor, load_model

    config = files.config
    expanded = 4 * config.parameters if dtype == "float32" else files.file_bytes
    kv = plan_kv(
        config,
        expanded,
        context=context,
        kv_memory=kv_memory,
        bytes_per_value=4 if dtype == "float32" else 2,
        available=machine.memory().available,
    )

    def pack() -> NativeExecutor:
        report = None if progress is None else lambda done, total: progress("Loading", done, total)
        return load_model(files, context=kv.context, kv_pages=kv.pages, compute=dtype, threads=threads, progress=report)

    packing = Background(pack, "herder-load")
    try:
        from herder.chat.load import load_chat_format
        from herder.engine.engine import Engine
        from herder.engine.scheduler import Policy
        from herder.llm import LLM
        from herder.text.load import load_tokenizer

        tokenizer = load_tokenizer(files.metadata if files.kind == "gguf" else files.path)
        chat_sampling = recommended_sampling(files)
        try:
            chat_format, refusal = load_chat_format(tokenizer, files.chat_templates, override=template), None
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
