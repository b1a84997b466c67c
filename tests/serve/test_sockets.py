"""The sockets of a server: bound before a model is loaded, one port on every address, and one line for what fails."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from herder.core.errors import UsageError
from herder.serve import lifecycle
from herder.serve.config import OFF, Config, ModelSpec
from herder.serve.sockets import listen


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Makes every name have these addresses."""
    found = [
        (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)


def test_a_taken_port_is_said_before_a_model_is_looked_for(taken: int) -> None:
    nowhere = ModelSpec("nowhere", "/nonexistent.gguf", preload=True)
    config = Config(port=taken, models=(nowhere,), responses=OFF, offline=True)
    with pytest.raises(UsageError) as caught:
        lifecycle.serve(config, lambda line: pytest.fail("it serves"))
    assert str(caught.value) == (
        f"http://127.0.0.1:{taken} cannot be listened on: the port is taken, perhaps by another server: "
        "choose another --port"
    )


def test_the_port_is_given_back_when_the_start_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    nowhere = ModelSpec("nowhere", "/nonexistent.gguf", preload=True)
    with pytest.raises(ValueError, match=r"nonexistent.gguf"):
        lifecycle.serve(Config(port=port, models=(nowhere,), responses=OFF, offline=True), lambda line: None)
    assert is_free(port)


def test_two_that_start_at_once_do_not_share_a_port() -> None:
    [first] = listen(Config(port=0))
    with first, pytest.raises(UsageError, match="is taken"):
        listen(Config(port=first.getsockname()[1]))


def test_every_address_of_a_name_has_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    sockets = listen(Config(host="both", port=0))
    names = [one.getsockname() for one in sockets]
    for one in sockets:
        one.close()
    assert [name[0] for name in names] == ["127.0.0.1", "127.0.0.2"] and names[0][1] == names[1][1] > 0


def test_none_is_kept_when_one_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(UsageError, match=f"both:{port} cannot be listened on: the port is taken"):
            listen(Config(host="both", port=port))
        assert is_free(port)


@pytest.mark.parametrize("hosts", [("240.0.0.1", "127.0.0.1"), ("127.0.0.1", "240.0.0.1")])
def test_an_address_that_this_machine_has_not_is_left_out(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    resolving(monkeypatch, *hosts)
    [one] = listen(Config(host="localhost", port=0))
    with one:
        assert one.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["240.0.0.1", "no such host", "::1%nowhere"])
def test_a_host_that_is_not_here(host: str) -> None:
    with pytest.raises(UsageError, match=f"{host} is no address of this machine: choose another --host"):
        listen(Config(host=host, port=0))


def test_none_of_several_addresses_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "240.0.0.1", "240.0.0.2")
    with pytest.raises(UsageError, match="far is no address of this machine"):
        listen(Config(host="far", port=0))


def test_a_port_of_the_privileged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(UsageError, match="port 80 is for those with more rights: choose a --port from 1024 on"):
        listen(Config(port=80))


def test_all_addresses_of_the_machine() -> None:
    sockets = listen(Config(host="", port=0))
    port = sockets[0].getsockname()[1]
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    finally:
        for one in sockets:
            one.close()
    families = [one.family for one in sockets]
    assert socket.AF_INET in families and len(set(families)) == len(families)


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_address_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error.strerror}")
    [one] = listen(Config(host="::1", port=0))
    with one, socket.create_connection(one.getsockname()[:2], timeout=10):
        pass
