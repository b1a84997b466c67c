"""The served models: loaded when they are asked for, unloaded when they are idle, under one memory budget.

A model in use is never unloaded; when memory is short, the idle one that was used longest ago goes first. Loads run one
after another, off the event loop. A load that fails answers everybody who waited with its one line, and for RETRY
seconds whoever asks next; then it is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from herder.core.errors import HerderError, OutOfMemory
from herder.core.sizes import bytes_text
from herder.serve.config import ModelSpec
from herder.serve.dialect import Problem
from herder.serve.fingerprint import fingerprint
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from herder.llm import LLM

RETRY = 5.0


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes, and how it is then loaded: context in tokens, KV cache in bytes (None: as load()
    has it)."""

    bytes: int
    context: int | None = None
    kv_memory: int | None = None


Load = Callable[[ModelSpec, Need], "LLM"]
Measure = Callable[[ModelSpec, "int | None"], Need]  # given the bytes there would be; raises OutOfMemory


@dataclass(slots=True, eq=False)
class Served:
    """A model by its served name, and what has become of it. used, since: monotonic seconds. keep: seconds of idleness
    before it is unloaded; None: the configured ones. fingerprint: see fingerprint.py."""

    spec: ModelSpec
    llm: LLM | None = None
    bytes: int = 0
    users: int = 0
    used: float = 0.0
    loads: int = 0
    load_seconds: float = 0.0
    fingerprint: str | None = None
    keep: float | None = None
    failure: BaseException | None = None
    failed: float = 0.0
    loading: asyncio.Task[LLM] | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.spec.name


class Models:
    """The models of one server; everything here runs on its event loop, loads and unloads on threads.

    budget: bytes for all of them, None for what the machine has free. idle: seconds, 0 for never.
    """

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        load: Load,
        measure: Measure,
        *,
        budget: int | None = None,
        idle: float = 0.0,
        changed: Callable[[str, Served, str], None] = lambda what, served, why: None,
    ) -> None:
        self._served: dict[str, Served] = {}
        self._names: dict[str, Served] = {}
        self._load, self._measure = load, measure
        self._budget, self._idle = budget, idle
        self._changed = changed  # told "loaded", "unloaded" and "failed", which model, and why
        self._turn = asyncio.Lock()  # one load or unload at a time, so that the sums are true
        self._unloading: set[asyncio.Task[bool]] = set()
        self._closed = False
        for spec in specs:
            self.add(spec)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def add(self, spec: ModelSpec) -> Served:
        """Serves one more model. A name that is taken already keeps its meaning."""
        served = self._served.setdefault(spec.name, Served(spec))
        for name in (spec.name, *spec.aliases):
            self._names.setdefault(name, served)
        return served

    def find(self, name: str, allowed: frozenset[str] | None = None) -> Served:
        """By its served name or an alias. allowed: the served names that whoever asks may use, None for all. Raises
        Refusal (not_found)."""
        served = self._names.get(name)
        if served is None:
            raise self.unknown(name, allowed)
        return served

    def unknown(self, name: str, allowed: frozenset[str] | None) -> Refusal:
        """That nothing is served under a name, with no word on what is not allowed."""
        known = sorted(one for one in self._served if allowed is None or one in allowed)
        message = f"the model {name[:200]!r} is not served here: there is {', '.join(known[:8]) or 'none'}"
        return Refusal(Problem("not_found", message, "model", "model_not_found"))

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[LLM]:
        """The model, loaded first if it has to be, and kept while the block runs. Raises Refusal, or what the load
        raises."""
        served = self.find(name)
        served.users += 1
        if served.timer is not None:
            served.timer.cancel()
            served.timer = None
        try:
            yield served.llm or await self._loaded(served)
        finally:
            served.users -= 1
            served.used = monotonic()
            self._rest(served)

    async def unload(self, name: str) -> bool:
        """Unloads a model now; False when it is in use or not loaded."""
        served = self.find(name)
        async with self._turn:
            return await self._unload(served)

    async def remove(self, name: str) -> None:
        """Serves a model no longer. Raises Refusal when it is in use."""
        served = self.find(name)
        async with self._turn:
            if served.users or served.loading is not None:
                raise Refusal(Problem("overloaded", f"{served.name} is in use: try again", "model", retry_after=RETRY))
            await self._unload(served)
            del self._served[served.name]
            self._names = {known: one for known, one in self._names.items() if one is not served}

    async def close(self) -> None:
        """Unloads everything, whether it is in use or not."""
        self._closed = True
        loading = [served.loading for served in self._served.values() if served.loading is not None]
        await asyncio.gather(*loading, *self._unloading, return_exceptions=True)
        async with self._turn:
            for served in self._served.values():
                if served.timer is not None:
                    served.timer.cancel()
                if served.llm is not None:
                    llm, served.llm = served.llm, None
                    await asyncio.to_thread(llm.close)

    # -----------------------------------------------------------------------------------------------------------------
    async def _loaded(self, served: Served) -> LLM:
        if self._closed:
            raise Refusal(Problem("unavailable", "the server is shutting down", retry_after=RETRY))
        if served.failure is not None:
            if monotonic() - served.failed < RETRY:
                raise served.failure
            served.failure = None
        if served.loading is None:
            served.loading = asyncio.create_task(self._bring(served), name=f"load {served.name}")
            served.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # read at least once
        return await asyncio.shield(served.loading)  # who goes away does not stop it: others may wait

    async def _bring(self, served: Served) -> LLM:
        try:
            async with self._turn:
                started = monotonic()
                need = await self._room(served)
                llm = await asyncio.to_thread(self._load, served.spec, need)
                served.fingerprint = await asyncio.to_thread(fingerprint, served.spec, llm.engine.limits.prompts_apart)
                served.llm = llm
                served.bytes = need.bytes
                served.loads += 1
                served.used = monotonic()
                served.load_seconds = served.used - started
        except Exception as error:
            if not isinstance(error, Refusal):  # that one passes when somebody finishes
                served.failure, served.failed = error, monotonic()
            self._changed("failed", served, str(error))
            raise
        finally:
            served.loading = None
        self._changed("loaded", served, "")
        self._rest(served)
        return served.llm

    async def _room(self, served: Served) -> Need:
        """What the model needs, with so many idle models unloaded that there is room for it."""
        spec = served.spec
        loaded = [one for one in self._served.values() if one.llm is not None]
        idle = sorted((one for one in loaded if not one.users), key=lambda one: one.used)
        free = await asyncio.to_thread(self._free, sum(one.bytes for one in loaded))
        reach = None if free is None else free + sum(one.bytes for one in idle)
        try:
            need = await asyncio.to_thread(self._measure, spec, reach)
        except OutOfMemory as error:
            busy = [one for one in loaded if one.users]
            if not busy:
                raise
            names = ", ".join(one.name for one in busy)
            held = bytes_text(sum(one.bytes for one in busy))
            message = f"{served.name} does not fit while {names} ({held}) are in use: {error}"
            raise Refusal(Problem("unavailable", message, "model", retry_after=RETRY)) from None
        while free is not None and free < need.bytes and idle:
            one = idle.pop(0)
            if await self._unload(one):
                free += one.bytes
        if free is not None and free < need.bytes:  # somebody began to use one meanwhile
            message = f"{served.name} needs {bytes_text(need.bytes)}, and {bytes_text(free)} are free: try again"
            raise Refusal(Problem("unavailable", message, "model", retry_after=RETRY))
        return need

    def _free(self, used: int) -> int | None:
        from herder.core import machine

        available = machine.memory().available
        if self._budget is None:
            return available
        rest = max(0, self._budget - used)
        return rest if available is None else min(rest, available)

    async def _unload(self, served: Served) -> bool:
        """With the turn held."""
        if served.users or served.llm is None:
            return False
        llm, served.llm = served.llm, None
        served.keep = None  # who loads it next may say otherwise
        await asyncio.to_thread(llm.close)
        self._changed("unloaded", served, "")
        return True

    def _rest(self, served: Served) -> None:
        """Sets the clock that unloads an idle model."""
        if served.users or served.llm is None or self._closed:
            return
        seconds = served.keep if served.keep is not None else served.spec.idle
        seconds = self._idle if seconds is None else seconds
        if served.timer is not None:
            served.timer.cancel()
            served.timer = None
        if seconds > 0 or served.keep == 0:
            served.timer = asyncio.get_running_loop().call_later(seconds, self._expire, served)

    async def _expired(self, served: Served) -> bool:
        async with self._turn:
            return await self._unload(served)

    def _expire(self, served: Served) -> None:
        served.timer = None
        task = asyncio.create_task(self._expired(served))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)


# On this machine -----------------------------------------------------------------------------------------------------
def measure(spec: ModelSpec, available: int | None, *, parallel: int, offline: bool) -> Need:
    """From the model's files: the memory of its weights and of a KV cache for `parallel` sequences of the full context,
    or as many as half of what is free beside the weights holds; at least one. Blocks."""
    from herder.assemble import footprint
    from herder.serve.catalogue import local_path
    from herder.weights.source import open_model

    with open_model(local_path(spec, offline)) as files:
        one = footprint(
            files,
            runtime=spec.runtime,
            device=spec.device,
            dtype=spec.dtype,
            context=spec.context,
            kv_memory=spec.kv_memory,
            available=available,
        )
        kv_memory = spec.kv_memory
        if kv_memory is None:
            rest = one.kv * parallel if available is None else (available - one.weights) // 2
            kv_memory = max(one.kv, min(one.kv * parallel, rest))
        return Need(one.weights + kv_memory, one.context, kv_memory)


def load(spec: ModelSpec, need: Need, *, offline: bool) -> LLM:
    """Blocks. Raises HerderError."""
    from herder.assemble import load as load_model
    from herder.serve.catalogue import local_path

    template = None
    if spec.template is not None:
        try:
            with open(spec.template, encoding="utf-8") as file:
                template = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise HerderError(f"the template {spec.template} of {spec.name} cannot be read: {error}") from None
    return load_model(
        local_path(spec, offline),
        runtime=spec.runtime,
        device=spec.device,
        dtype=spec.dtype,
        prompt_dtype=spec.prompt_dtype,
        context=need.context,
        kv_memory=need.kv_memory,
        threads=spec.threads,
        speculate=spec.speculate,
        template=template,
        chat_format=spec.chat_format,
        offline=True,
    )
