"""A server opens no connection, whatever it is asked: watched from inside Python and, where there is strace, from the
kernel's side."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

# Every audit event by which Python reaches out, written to a file as it happens. uvloop connects without telling
# Python, so it is left out here and watched by strace below.
WATCHED = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)
EVENTS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
          "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request", "http.client.connect"}
def hook(event, arguments):
    if event in EVENTS:
        by_socket = event in ("socket.connect", "socket.sendto", "socket.sendmsg")  # which comes first
        log.write(f"{event} {arguments[by_socket:]}\\n")
sys.addaudithook(hook)
sys.modules["uvloop"] = None
if sys.argv[1:] == ["connect"]:  # that it would be seen
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
    sys.exit()
from herder.cli.__main__ import main
sys.exit(main())
"""


@contextmanager
def serving(command: list[str], config: Path) -> Iterator[str]:
    """The URL of a server under watch; ended by SIGTERM, and cleanly."""
    with subprocess.Popen(
        [*command, "serve", "--config", str(config), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        try:
            assert found, line + process.stderr.read()
            yield found[0]
        finally:
            process.terminate()
            _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log


@pytest.fixture
def config(smollm2: str, tmp_path: Path) -> Path:
    """One model from the start, the same again on demand, one that cannot be loaded and one that is nowhere."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more than that")
    path = tmp_path / "herder.toml"
    path.write_text(
        f'responses = "responses.sqlite"\n[logging]\naudit = "audit.jsonl"\n'
        f"[models.first]\nsource = {json.dumps(str(smollm2))}\npreload = true\ncontext = 512\n"
        f"[models.second]\nsource = {json.dumps(str(smollm2))}\ncontext = 512\n"
        f"[models.broken]\nsource = {json.dumps(str(tmp_path / 'broken.gguf'))}\n"
        f'[models.nowhere]\nsource = "org/not-on-this-machine"\n',
        encoding="utf-8",
    )
    return path


def exercise(url: str) -> None:
    """Chat, streams, embeddings, models loaded and refused, bad requests, pages."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:

        def status(path: str, body: Any = None, **headers: str) -> int:
            if body is None:
                return client.get(path, headers=headers).status_code
            return client.post(path, json=body, headers=headers).status_code

        chat = {"model": "first", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        assert status("/v1/chat/completions", chat) == 200
        assert status("/v1/chat/completions", chat | {"stream": True, "model": "second"}) == 200
        assert status("/v1/embeddings", {"model": "first", "input": ["a", "b"]}) == 200
        assert status("/v1/chat/completions", chat | {"model": "broken"}) >= 400
        assert status("/v1/chat/completions", chat | {"model": "nowhere"}) == 404
        assert status("/v1/chat/completions", chat | {"model": "org/never-heard-of"}) == 404
        picture = [{"type": "image_url", "image_url": {"url": "http://192.0.2.1/cat.png"}}]
        seen = status("/v1/chat/completions", chat | {"messages": [{"role": "user", "content": picture}]})
        assert 400 <= seen < 500
        url = "https://pictures.example/cat.png"
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
        block = {"type": "image", "source": {"type": "url", "url": url}}
        part = {"fileData": {"fileUri": url, "mimeType": "image/png"}}
        for path, body in (
            ("/v1/responses", {"model": "first", "input": [item]}),
            ("/v1/messages", {"model": "first", "max_tokens": 4, "messages": [{"role": "user", "content": [block]}]}),
            ("/v1beta/models/first:generateContent", {"contents": [{"parts": [part]}]}),
        ):
            assert status(path, body) == 400, path
        assert status("/v1/chat/completions", chat | {"nonsense": 1}) == 400
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400
        assert status("/v1/nothing") == 404
        for path in ("/", "/metrics", "/health/ready", "/v1/models"):
            assert status(path) == 200, path


def test_python_opens_no_connection(config: Path, tmp_path: Path) -> None:
    log = tmp_path / "connections"
    watched = [sys.executable, "-c", WATCHED, str(log)]
    subprocess.run([*watched, "connect"], check=True)
    assert log.read_text() == "socket.connect (('192.0.2.1', 9),)\n"  # it would be seen
    log.write_text("")
    with serving(watched, config) as url:
        exercise(url)
    # The address that it listens on is looked up: a number, so nobody is asked.
    assert [line for line in log.read_text().splitlines() if "getaddrinfo ('127.0.0.1'" not in line] == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")
def test_the_process_makes_no_connection(config: Path, tmp_path: Path) -> None:
    """With the native core, uvloop and every library: connect() to an address of the network is never called, and no
    datagram leaves for one."""
    log = tmp_path / "calls"
    # -D: the process that is started is the server; --seccomp-bpf: other calls are not slowed down.
    strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    strace += ["-e", "signal=none", "-o", str(log)]
    trial = subprocess.run([*strace, "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"strace may not trace here: {trial.stderr.strip()}; allow ptrace (docker: --cap-add SYS_PTRACE)")
    reach = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([*strace, sys.executable, "-c", reach], check=True)
    assert outbound(log) != []  # it would be seen
    with serving([*strace, sys.executable, "-m", "herder.cli"], config) as url:
        exercise(url)
    assert outbound(log) == []


def outbound(log: Path) -> list[str]:
    """Calls that name an address of the network; answers go out by send() on the client's own connection."""
    return [line for line in log.read_text().splitlines() if re.search(r"sa_family=AF_INET6?\b", line)]
