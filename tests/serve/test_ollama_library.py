"""Ollama's client fetches models from a hub through the server, uses them and deletes them, where that is allowed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from herder.core.errors import StorageError
from herder.serve.config import Config, ModelSpec
from herder.serve.dialects import ollama_library
from herder.serve.lifecycle import described, make_server
from herder.serve.log import Log
from herder.serve.server import Server
from herder.weights import hub, store
from tests.serve.live import Live, live
from tests.tiny import write_tiny_gguf
from tests.weights.fake_hub import FakeHub, Repository

USER = {"role": "user", "content": "hello"}
FEW = {"num_predict": 4, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("hub") / "tiny-F32.gguf").path.read_bytes()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: bytes) -> Iterator[FakeHub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "HERDER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_pause", lambda stop, attempts: None)
    monkeypatch.setattr(hub, "CHUNK", 20_000)
    with FakeHub(
        {"o/gguf": Repository({"tiny-F32.gguf": model}), "o/gated": Repository({"tiny-F32.gguf": model}, gated=401)}
    ) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        yield found


def make(config: Config) -> Server:
    return make_server(config, log=Log(requests=False))


@pytest.fixture
def served(fake: FakeHub) -> Iterator[Live]:
    config = Config(pull=True, models=(ModelSpec("configured", "o/gguf:F32", aliases=("other",)),))
    with live(make=make, config=config) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[ollama.Client]:
    with ollama.Client(served.url) as found:
        yield found


def refused(call: Any) -> ollama.ResponseError:
    with pytest.raises(ollama.ResponseError) as caught:
        call()
    return caught.value


def test_a_model_is_fetched_used_and_deleted(client: ollama.Client, model: bytes) -> None:
    name = "hf.co/o/gguf:F32"
    assert refused(lambda: client.chat(name, [USER])).status_code == 404
    states = list(client.pull(name, stream=True))
    assert states[0].status == "pulling manifest" and states[-1].status == "success"
    progress = [one for one in states if one.total]
    assert progress and all(one.total == len(model) and one.digest == one.status for one in progress)
    done = [one.completed or 0 for one in progress]
    assert done == sorted(done) and done[-1] <= len(model)
    assert store.find("o/gguf:F32") is not None
    answer = client.chat(name, [USER], options=FEW)
    assert answer.eval_count == 4 and client.generate("o/gguf:F32", "hello", options=FEW).done
    shown = client.show(name)
    assert shown.modelinfo and shown.modelinfo["llama.context_length"] == 256
    assert shown.details and shown.details.format and shown.license == "apache-2.0" and shown.template
    [running] = client.ps().models
    assert running.model == name and running.context_length and running.size and running.size_vram == 0
    listed = {one.model: one for one in client.list().models}
    assert listed[name].size == len(model) and listed[name].digest == listed["configured"].digest
    assert client.delete(name).status == "success"
    assert store.find("o/gguf:F32") is None
    assert refused(lambda: client.chat(name, [USER])).status_code == 404


def test_what_was_pulled_is_served_after_a_restart(fake: FakeHub, tmp_path: Path) -> None:
    config = Config(pull=True, models=(ModelSpec("configured", "o/gguf:F32"),))
    with live(make=make, config=config) as first, ollama.Client(first.url) as client:
        client.pull("hf.co/o/gguf:F32")
        client.pull("configured")
    assert json.loads((tmp_path / "home/state/pulled.json").read_text()) == {"hf.co/o/gguf:F32": "o/gguf:F32"}
    assert any("of those they have: hf.co/o/gguf:F32" in line for line in described(config))
    with live(make=make, config=config) as second, ollama.Client(second.url) as client:
        for name in ("hf.co/o/gguf:F32", "o/gguf:F32"):
            assert client.chat(name, [USER], options=FEW).done
        client.delete("hf.co/o/gguf:F32")
    with live(make=make, config=config) as third, ollama.Client(third.url) as client:
        assert refused(lambda: client.chat("hf.co/o/gguf:F32", [USER])).status_code == 404
        client.pull("o/gguf:F32")
    store.remove("o/gguf:F32")  # behind the server's back
    with live(make=make, config=config) as fourth, ollama.Client(fourth.url) as client:
        assert refused(lambda: client.chat("o/gguf:F32", [USER])).status_code == 404
    with live(make=make, config=Config()) as closed, ollama.Client(closed.url) as client:
        assert client.list().models == [], "a server that lets nobody pull serves what it is told to"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"a": "/etc/passwd"}', '{"a": "../o/gguf"}', "[" * 10_000]
)
def test_a_damaged_list_of_what_was_pulled_is_not_guessed(fake: FakeHub, tmp_path: Path, text: str) -> None:
    path = tmp_path / "home/state/pulled.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StorageError, match="damaged: delete it"):
        described(Config(pull=True))

    async def start() -> None:
        make(Config(pull=True))

    with pytest.raises(StorageError, match="damaged"):
        asyncio.run(start())


def test_a_configured_model_comes_back_under_its_names(client: ollama.Client) -> None:
    assert refused(lambda: client.chat("configured", [USER])).status_code == 404
    assert client.pull("other:latest").status == "success"
    assert client.chat("configured", [USER], options=FEW).done
    client.delete("other")
    assert client.list().models == []
    assert client.pull("configured").status == "success"
    assert client.chat("other", [USER], options=FEW).done


def test_a_pull_of_what_is_there_succeeds(client: ollama.Client) -> None:
    client.pull("configured")
    assert [one.status for one in client.pull("configured", stream=True)][-1] == "success"


def test_what_cannot_be_pulled(client: ollama.Client, served: Live, tmp_path: Path, model: bytes) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(model)
    for name in (str(own), "./own.gguf", "~/own.gguf", "nothing", "llama3.2:77b", "../o/gguf"):
        error = refused(lambda name=name: client.pull(name))
        assert error.status_code == 404 and "not found" in error.error, name
    assert refused(lambda: client.pull("o/missing")).status_code == 404
    assert "gated" in refused(lambda: client.pull("o/gated")).error
    streamed = refused(lambda: list(client.pull("o/missing", stream=True)))
    assert "o/missing" in streamed.error, "an error of a stream is its last line"
    assert refused(lambda: client.pull("o/gguf", insecure=True)).status_code == 400
    assert {one.model for one in client.list().models} == {"configured", "other"}


def test_a_directory_of_a_hub_name_is_not_served(
    client: ollama.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o" / "gguf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert refused(lambda: client.pull("hf.co/o/gguf")).status_code == 404


def test_what_cannot_be_deleted(fake: FakeHub, tmp_path: Path, model: bytes) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(model)
    config = Config(pull=True, models=(ModelSpec("own", str(own)),))
    with live(make=make, config=config) as served, ollama.Client(served.url) as client:
        error = refused(lambda: client.delete("own"))
        assert error.status_code == 403 and "your own file" in error.error and own.exists()
        assert client.chat("own", [USER], options=FEW).done, "it is still served"
        assert refused(lambda: client.delete("nothing")).status_code == 404


def test_a_model_in_use_is_not_deleted(client: ollama.Client, served: Live) -> None:
    client.pull("configured")
    held = served.server.models.find("configured")
    client.generate("configured")
    served.call(lambda: setattr(held, "users", held.users + 1))
    assert refused(lambda: client.delete("configured")).status_code == 503
    served.call(lambda: setattr(held, "users", held.users - 1))
    assert client.delete("configured").status == "success"


def test_without_permission_nothing_is_fetched(fake: FakeHub) -> None:
    own = (ModelSpec("configured", "o/gguf:F32", pull=True),)
    with live(make=make, config=Config(models=own)) as served, ollama.Client(served.url) as client:
        for call in (lambda: client.pull("o/gguf"), lambda: client.delete("configured")):
            error = refused(call)
            assert error.status_code == 403 and "pull = true" in error.error
        assert fake.log == []
        assert client.pull("configured").status == "success", "its own configuration lets it be fetched"
    with live(make=make, config=Config(pull=True, offline=True)) as served, ollama.Client(served.url) as client:
        asked = len(fake.log)
        assert "switched off" in refused(lambda: client.pull("o/gguf:F32@main")).error
        assert len(fake.log) == asked


class Endless:
    """A pull that says again and again that a byte has come, until it is let go; `ended` when it was ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.free, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._pull = store.pull
        monkeypatch.setattr(ollama_library, "EVERY", 0.01)
        monkeypatch.setattr(store, "pull", self)

    def __call__(self, name: str, *, offline: bool, progress: Any) -> Path:
        self.begun.set()
        try:
            while not self.free.is_set():
                progress("fetching", 1, 2)
                time.sleep(0.005)
        finally:
            self.ended.set()
        return self._pull(name, offline=offline, progress=progress)


def test_a_client_that_leaves_ends_its_pull_and_the_next_one_goes_on(
    served: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless(monkeypatch)
    body = {"model": "configured"}
    with httpx.stream("POST", f"{served.url}/api/pull", json=body, timeout=30) as first:
        lines = first.iter_lines()
        assert json.loads(next(lines)) == {"status": "pulling manifest"}
        assert json.loads(next(lines))["completed"] == 1
        with httpx.stream("POST", f"{served.url}/api/pull", json=body, timeout=30) as second:
            waiting = second.iter_lines()
            assert next(waiting) and "waiting" in json.loads(next(waiting))["status"]
            first.close()
            assert endless.ended.wait(10)
            endless.free.set()
            assert json.loads(list(waiting)[-1]) == {"status": "success"}
    assert store.find("o/gguf:F32") is not None


def test_one_that_waits_in_silence_and_leaves(served: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    body = json.dumps({"model": "configured", "stream": False}).encode()
    address = httpx.URL(served.url)
    with socket.create_connection((address.host, address.port or 0)) as connection:
        head = f"POST /api/pull HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert endless.begun.wait(10)
    assert endless.ended.wait(10)


def test_a_server_that_drains_ends_its_pulls(served: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    with httpx.stream("POST", f"{served.url}/api/pull", json={"model": "configured"}, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) and next(lines)
        served.call(lambda: setattr(served.server, "draining", True))
        assert "shutting down" in json.loads(list(lines)[-1])["error"]
    assert endless.ended.wait(10)


def test_what_fails_within_is_not_quoted(served: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> Path:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(store, "pull", broken)
    answer = httpx.post(f"{served.url}/api/pull", json={"model": "configured"})
    assert "internal error" in answer.text and "secret" not in answer.text
    whole = httpx.post(f"{served.url}/api/pull", json={"model": "configured", "stream": False})
    assert whole.status_code == 500 and "secret" not in whole.text
