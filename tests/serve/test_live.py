"""The server on real sockets: clients that leave, many at once, silence, and the end of the process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from herder.llm import LLM
from herder.runtime.fake import FakeExecutor
from herder.serve import connection
from herder.serve.config import Config
from herder.serve.config import Limits as Bounds
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
LONG = {**BODY, "max_tokens": 900}
# One for all: making a client reads the system's certificates, which takes longer than a request.
HTTP = httpx.Client(timeout=60, verify=False, limits=httpx.Limits(max_connections=64))


class Slow(FakeExecutor):
    """A step takes 10 ms."""

    def result(self, ticket: Any) -> Any:
        time.sleep(0.01)
        return super().result(ticket)


@pytest.fixture
def slow() -> Iterator[tuple[Live, LLM]]:
    llm = fake_llm(Slow(LIMITS, dim=CONFIG.dim))
    with live(llm) as served:
        yield served, llm


def until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def idle(llm: LLM) -> bool:
    stats = llm.engine.stats()
    return not stats.running and not stats.waiting and not stats.pages_used


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(slow: tuple[Live, LLM], stream: bool) -> None:
    served, llm = slow
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: llm.engine.stats().running)
        if stream:
            assert b"200" in connection.recv(4096)
    until(lambda: idle(llm))
    assert llm.engine.stats().counters.aborted == 1
    until(lambda: served.server.models.find("tiny").users == 0)
    page = HTTP.get(served.url + "/metrics").text
    assert 'herder_requests_cancelled_total{engine="0",key="",model_name="tiny"} 1.0' in page


def test_a_client_that_leaves_while_its_model_loads(slow: tuple[Live, LLM]) -> None:
    served, _ = slow
    with pytest.raises(httpx.ReadTimeout):
        HTTP.post(served.url + CHAT, json=LONG, timeout=httpx.Timeout(60, read=0.05))
    until(lambda: served.server.models.find("tiny").users == 0)


def test_a_head_is_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    with live(fake_llm()) as served:
        host, port = served.url.removeprefix("http://").split(":")
        line = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n".encode()
        for endless in (b"x: " + b"y" * 200_000, b"x: y\r\n" * 40_000):
            with socket.create_connection((host, int(port))) as client:
                client.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    client.sendall(line + endless)
                    assert client.recv(100).startswith(b"HTTP/1.1 400")
        for beginning in (b"", line):
            with socket.create_connection((host, int(port))) as client:
                client.settimeout(10)
                client.sendall(beginning)
                assert client.recv(100) == b"", "closed"
        with socket.create_connection((host, int(port))) as client:  # one connection, several requests
            client.settimeout(10)
            for silence in (0.1, 0.1, 0.3, 0.0):  # between requests it may be silent for longer
                client.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
                answer = b""
                while b'"ok"' not in answer:
                    answer += (piece := client.recv(4096))
                    assert piece, "closed"
                time.sleep(silence)


def spoken(served: Live, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(10)
        client.sendall(sent)
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_what_is_no_http_is_refused_in_json() -> None:
    close = b"connection: close\r\n"
    with live(fake_llm()) as served:
        for wrong in (
            b"HELLO\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\n" + close + b"\r\n",
            b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nHost: localhost\r\n" + close + b"\r\n",
        ):
            status, body = spoken(served, wrong)
            assert status == 400 and json.loads(body)["error"]["type"] == "invalid_request_error", wrong
        assert spoken(served, b"GET /health/live HTTP/1.0\r\n\r\n")[0] == 200


def test_many_clients_at_once_get_their_own_answers() -> None:
    llm = fake_llm()
    with live(llm) as served:
        prompts = [f"question {i} " + "x" * (7 * i % 50) for i in range(24)]

        def ask(prompt: str, stream: bool) -> str:
            body = {**BODY, "messages": [{"role": "user", "content": prompt}], "stream": stream, "max_tokens": 20}
            answer = HTTP.post(served.url + CHAT, json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            if not stream:
                return str(answer.json()["choices"][0]["message"]["content"])
            lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
            return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)

        with ThreadPoolExecutor(16) as pool:
            streamed = list(pool.map(lambda prompt: ask(prompt, True), prompts))
            whole = list(pool.map(lambda prompt: ask(prompt, False), prompts))
        assert streamed == whole
        assert len(set(whole)) > 20
        until(lambda: idle(llm))


def test_a_third_of_the_clients_leaving_leaves_nothing_behind(slow: tuple[Live, LLM]) -> None:
    served, llm = slow

    def ask(number: int) -> int:
        body = {**BODY, "max_tokens": 900 if number % 3 == 0 else 10, "stream": number % 2 == 0}
        try:
            return HTTP.post(served.url + CHAT, json=body, timeout=0.3 if number % 3 == 0 else 60).status_code
        except httpx.TimeoutException:
            return 0

    def stream(number: int) -> int:
        with HTTP.stream("POST", served.url + CHAT, json={**LONG, "stream": True}, timeout=60) as answer:
            next(answer.iter_lines())
            return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(ask, range(24)))
        assert list(pool.map(stream, range(8))) == [200] * 8
    assert [code for number, code in enumerate(codes) if number % 3] == [200] * 16
    until(lambda: idle(llm))
    until(lambda: served.server.models.find("tiny").users == 0)
    threads = {thread.name for thread in threading.enumerate()}
    assert not {name for name in threads if name.startswith("load")}


def test_a_silent_stream_says_that_it_is_alive() -> None:
    class Waiting(FakeExecutor):
        def result(self, ticket: Any) -> Any:
            time.sleep(0.4)
            return super().result(ticket)

    config = Config(limits=Bounds(keep_alive=0.1))
    with live(fake_llm(Waiting(LIMITS, dim=CONFIG.dim)), config=config) as served:
        answer = HTTP.post(served.url + CHAT, json={**BODY, "max_tokens": 2, "stream": True}, timeout=60)
        assert answer.status_code == 200 and answer.text.count(": keep-alive\n\n") >= 2
        assert answer.text.endswith("data: [DONE]\n\n")


# The process ---------------------------------------------------------------------------------------------------------
class Process:
    """`herder serve` as a user starts it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "herder.cli", "serve", "--port", "0", "--responses", "off", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving "), line + self.process.communicate()[1]
        return next(word.rstrip(",\n") for word in line.split() if word.startswith("http"))


def test_the_default_model_is_served_and_sigterm_drains(smollm2: Path) -> None:
    with Process("smollm2", "--alias", "gpt-4o-mini=smollm2", "--context", "512") as served:
        url = served.ready()
        ready = HTTP.get(url + "/health/ready")
        assert (ready.status_code, ready.json()["models"]) == (200, {"smollm2": "ready"})
        body = {**BODY, "model": "gpt-4o-mini", "max_tokens": 40, "stream": True}
        with HTTP.stream("POST", url + CHAT, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            rest = "\n".join(lines)
        assert "[DONE]" in rest, "the stream was finished"
        assert served.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            HTTP.get(url + "/health/live")
        log = [json.loads(line) for line in served.process.communicate()[1].splitlines()]
        assert [line["event"] for line in log if line["event"] != "request"] == ["loaded", "draining", "stopped"]
        requests = [line for line in log if line["event"] == "request"]
        assert requests[-1]["model"] == "smollm2" and requests[-1]["completion_tokens"] > 0
        assert "hello" not in json.dumps(log)


def test_a_stream_beyond_the_drain_is_cut_and_the_exit_is_clean(smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "herder.toml"
    config.write_text('[limits]\ndrain = 1.0\n[models.m]\nsource = "smollm2"\npreload = true\n')
    with Process("--config", str(config)) as served:
        url = served.ready()
        body = {**BODY, "model": "m", "max_tokens": 5000, "stream": True, "logit_bias": {"2": -100, "0": -100}}
        with HTTP.stream("POST", url + CHAT, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGINT)
            try:
                for _ in lines:
                    pass
            except httpx.RemoteProtocolError:
                pass
        assert served.process.wait(30) == 0


def test_what_cannot_start_says_so_in_one_line(smollm2: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (["nothing-of-that-name", "--offline", "--port", "0"], "nothing-of-that-name"),
            (["smollm2", "--port", port], port),
            (["smollm2", "--host", "0.0.0.0", "--port", "0"], "no API keys"),
            (["smollm2", "--alias", "a=b", "--port", "0"], "not served"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "herder.cli", "serve", *arguments],
                cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            lines = done.stderr.splitlines()
            assert done.returncode not in (0, 1) and len(lines) == 1 and words in lines[0], (arguments, done)
