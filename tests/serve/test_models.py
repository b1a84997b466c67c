"""Models on demand: loads, waiters, the budget, idleness, failures. Loading is a function here, so nothing is slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from herder.core.errors import ModelFileError, OutOfMemory
from herder.llm import LLM
from herder.serve import models as module
from herder.serve.catalogue import Catalogue, local_path
from herder.serve.config import ModelSpec
from herder.serve.models import Models, Need, load, measure
from herder.serve.problems import Refusal, problem_of
from tests.serve.models import fake_llm

SIZES = {"a": 4, "b": 4, "c": 8, "huge": 99}
BUDGET = 10


class Machine:
    """Loads and measures: what was loaded, in order, and how it fails."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.most = 0
        self.llms: dict[str, LLM] = {}
        self.events: list[tuple[str, str]] = []

    def load(self, spec: ModelSpec, need: Need) -> LLM:
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.loaded.append(spec.name)
        self.llms[spec.name] = llm = fake_llm()
        return llm

    def measure(self, spec: ModelSpec, room: int | None) -> Need:
        if room is not None and SIZES[spec.name] > room:
            raise OutOfMemory(f"{spec.name} needs {SIZES[spec.name]} of {room}")
        return Need(SIZES[spec.name])


def run(
    test: Callable[[Models, Machine], Coroutine[Any, Any, None]], budget: int | None = BUDGET, **options: Any
) -> None:
    async def main() -> None:
        machine = Machine()
        specs = [ModelSpec(name, aliases=(f"{name}-too",), **options) for name in SIZES]
        models = Models(
            specs,
            machine.load,
            machine.measure,
            budget=budget,
            changed=lambda what, served, why: machine.events.append((what, served.name)),
        )
        await test(models, machine)
        machine.gate.set()
        await models.close()
        assert all(served.llm is None for served in models)

    asyncio.run(main())


def loaded(models: Models) -> set[str]:
    return {served.name for served in models if served.llm is not None}


async def touch(models: Models, name: str) -> None:
    async with models.use(name):
        pass


def test_a_model_is_loaded_once_for_all_who_wait() -> None:
    async def test(models: Models, machine: Machine) -> None:
        machine.gate.clear()
        users = [asyncio.create_task(touch(models, name)) for name in ("a", "a-too", "a")]
        await asyncio.sleep(0.02)
        users[0].cancel()  # whoever goes away does not stop it
        machine.gate.set()
        await asyncio.gather(*users[1:])
        assert machine.loaded == ["a"] and loaded(models) == {"a"}
        assert models.find("a").users == 0
        await touch(models, "a")
        assert machine.loaded == ["a"]

    run(test)


def test_the_idle_one_used_longest_ago_goes_first() -> None:
    async def test(models: Models, machine: Machine) -> None:
        await touch(models, "a")
        await touch(models, "b")
        await touch(models, "a")
        assert loaded(models) == {"a", "b"}
        async with models.use("a"):
            with pytest.raises(Refusal, match=r"while a .* in use") as caught:
                await touch(models, "c")
            assert caught.value.problem.kind == "unavailable" and caught.value.problem.retry_after
            assert loaded(models) == {"a", "b"}, "nothing is unloaded in vain"
        await touch(models, "c")
        assert loaded(models) == {"c"}
        await touch(models, "b")
        assert loaded(models) == {"b"}
        await touch(models, "a")
        assert loaded(models) == {"a", "b"}
        assert machine.events[-1] == ("loaded", "a")

    run(test)


def test_one_that_can_never_fit_says_so_and_unloads_nobody() -> None:
    async def test(models: Models, machine: Machine) -> None:
        await touch(models, "a")
        with pytest.raises(OutOfMemory, match="huge needs 99 of 10"):
            await touch(models, "huge")
        assert loaded(models) == {"a"}

    run(test)


def test_a_failed_load_tells_everybody_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(models: Models, machine: Machine) -> None:
        machine.failure = ModelFileError("a is truncated")
        found = await asyncio.gather(*(touch(models, "a") for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["a is truncated"] * 3
        machine.failure = None
        with pytest.raises(ModelFileError):
            await touch(models, "a")  # known, and not tried yet
        monkeypatch.setattr(module, "RETRY", 0.0)
        await touch(models, "a")
        assert loaded(models) == {"a"}
        assert machine.events == [("failed", "a"), ("loaded", "a")]

    run(test)


def test_an_idle_model_is_unloaded_and_one_in_use_is_not() -> None:
    async def test(models: Models, machine: Machine) -> None:
        async with models.use("a"):
            await asyncio.sleep(0.1)
            assert loaded(models) == {"a"}
        for _ in range(200):
            if machine.events[-1] == ("unloaded", "a"):
                break
            await asyncio.sleep(0.01)
        assert loaded(models) == set()
        await touch(models, "a")
        assert machine.loaded == ["a", "a"]

    run(test, idle=0.03)


def test_unserved_names_are_not_found_and_models_come_and_go() -> None:
    async def test(models: Models, machine: Machine) -> None:
        with pytest.raises(Refusal, match="'x' is not served here: there is a, b, c, huge") as caught:
            models.find("x")
        assert caught.value.problem.kind == "not_found"
        models.add(ModelSpec("x", aliases=("a",)))
        assert models.find("a").name == "a", "a name keeps its meaning"
        async with models.use("b"):
            with pytest.raises(Refusal, match="in use"):
                await models.remove("b")
            assert not await models.unload("b")
        await models.remove("b-too")
        for name in ("b", "b-too"):
            with pytest.raises(Refusal):
                models.find(name)

    run(test)


def test_nothing_is_loaded_after_the_end() -> None:
    async def test(models: Models, machine: Machine) -> None:
        await models.close()
        with pytest.raises(Refusal, match="shutting down"):
            await touch(models, "a")

    run(test)


def test_cards_describe_what_is_here_and_what_is_not(smollm2: Any) -> None:
    async def main() -> None:
        specs = [ModelSpec("small", str(smollm2)), ModelSpec("lost", "/nonexistent/model.gguf")]
        models = Models(specs, lambda spec, need: fake_llm(), lambda spec, room: Need(5))
        catalogue = Catalogue(models)
        card, lost = await catalogue.cards()
        assert card.summary is not None and card.summary.parameters > 10**8
        assert card.created > 1_600_000_000 and card.chats and not card.loaded and card.refusal is None
        assert lost.summary is None and lost.refusal and not lost.loaded
        async with models.use("small") as llm:
            card = await catalogue.card("small")
            assert (card.loaded, card.bytes, card.context) == (True, 5, llm.context)
        await models.close()

    asyncio.run(main())


def test_no_model_is_fetched_unless_its_configuration_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from herder.weights import store

    def resolve(name: str, **options: Any) -> Any:
        raise AssertionError("fetched")

    monkeypatch.setattr(store, "find", lambda name: None)
    monkeypatch.setattr(store, "resolve", resolve)
    for spec, offline in ((ModelSpec("x", "org/x"), False), (ModelSpec("x", "org/x", pull=True), True)):
        with pytest.raises(Refusal, match="herder pull org/x"):
            local_path(spec, offline)
    with pytest.raises(AssertionError, match="fetched"):
        local_path(ModelSpec("x", "org/x", pull=True), False)


def test_what_a_client_is_told() -> None:
    assert problem_of(ModelFileError("bad file")).kind == "internal"
    assert problem_of(OutOfMemory("too big")).kind == "unavailable"
    hidden = problem_of(KeyError("somebody's prompt"), "abc")
    assert hidden.kind == "internal" and "somebody" not in hidden.message and "abc" in hidden.message


def test_memory_is_measured_as_it_is_then_taken(smollm2: Any) -> None:
    """What measure() says, load() does: context and pages, with memory to spare, with little, and as told."""
    gib = 2**30
    spec = ModelSpec("m", str(smollm2))
    wide = measure(spec, 8 * gib, parallel=4, offline=True)
    narrow = measure(spec, gib // 2, parallel=4, offline=True)
    told = measure(replace(spec, kv_memory=64 * 2**20), 8 * gib, parallel=4, offline=True)
    assert wide.context == 8192 and wide.kv_memory is not None and narrow.kv_memory is not None
    one = measure(spec, 8 * gib, parallel=1, offline=True)
    assert wide.kv_memory == 4 * (one.kv_memory or 0)
    assert narrow.bytes <= gib // 2 and narrow.kv_memory < wide.kv_memory
    assert told.kv_memory == 64 * 2**20 and told.context is not None and told.context < 8192
    with load(replace(spec, kv_memory=64 * 2**20), told, offline=True) as llm:
        assert llm.context == told.context
    with pytest.raises(OutOfMemory):
        measure(spec, 2**20, parallel=4, offline=True)
