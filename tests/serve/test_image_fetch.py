"""Fetching images, from a host on this machine whose names resolve to public addresses, and from hosts of ill will."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from httptools import HttpParserError, HttpParserUpgrade
from hypothesis import given
from hypothesis import strategies as st

from herder.serve import image_fetch
from herder.serve.config import Images
from herder.serve.image_fetch import Fetcher, Room, Unfetched, _read, connected
from herder.serve.image_urls import Target, read_target
from tests.serve.image_host import OTHER, PICTURE, PUBLIC, Host, certificate, hosting, redirect, response

PLAIN = Images(("*.example",), http=True)
CAT = "http://pictures.example/cat.png"
MOST = 1 << 20
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


# The server's own loop, and the one that it has where there is no uvloop.
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setitem(LOOPS, "used", LOOPS[request.param])
    with hosting() as made:
        yield made


def fetch(
    host: Host,
    url: str = CAT,
    allowed: Images = PLAIN,
    *,
    most: int = MOST,
    together: Room | None = None,
    seconds: float = 20,
    context: ssl.SSLContext | None = None,
) -> bytes:
    async def run() -> bytes:
        fetcher = host.fetcher(allowed, context)
        try:
            async with asyncio.timeout(seconds):
                return await fetcher.fetch(read_target(url, allowed), most, together or Room(MOST), [])
        finally:
            fetcher.close()

    with asyncio.Runner(loop_factory=LOOPS.get("used")) as runner:
        return runner.run(run())


def reason(host: Host, url: str = CAT, **how: object) -> str:
    with pytest.raises(Unfetched) as caught:
        fetch(host, url, **how)  # type: ignore[arg-type]
    return caught.value.reason


# What is asked, and what is taken ------------------------------------------------------------------------------------
def test_an_image(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # which are not for this
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    host.pages["/cat.png?size=1"] = response(OTHER)
    assert fetch(host, f"{CAT}?size=1#top") == OTHER
    assert host.connected == [(PUBLIC, 80)] and host.resolved == ["pictures.example"]
    head = host.heads[0].lower().splitlines()
    assert head[:2] == ["get /cat.png?size=1 http/1.1", "host: pictures.example"]
    assert {"accept-encoding: identity", "connection: close", "accept: image/*"} < set(head)
    assert not [line for line in head if line.startswith(("authorization", "cookie", "referer", "via", "x-forwarded"))]


async def _chunked(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: IMAGE/PNG\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(PICTURE), 100):
        part = PICTURE[start : start + 100]
        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\nX-Trailer: y\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    "page",
    [
        _chunked,
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + PICTURE,  # until the connection ends
        b"HTTP/1.0 200 OK\r\nContent-Type: image/png; x=y\r\nContent-Encoding: identity\r\n\r\n" + PICTURE,
    ],
)
def test_bodies_of_every_form(host: Host, page: bytes) -> None:
    host.pages["/cat.png"] = page
    assert fetch(host) == PICTURE


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (response(status="404 Not Found"), "status"),
        (response(b"", status="204 No Content"), "status"),
        (response(status="206 Partial Content"), "status"),
        (response(head="Content-Type: text/html"), "type"),
        (response(head="X: y"), "type"),
        (response(b""), "type"),
        (response(head="Content-Type: image/png\r\nContent-Type: image/png"), "protocol"),
        (response(head="Content-Type: image/png\r\nContent-Encoding: gzip"), "encoding"),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", "encoding"),
        (response()[:-1], "protocol"),
        (CHUNKED + b"5\r\nabcde\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "protocol"),
        (b"220 smtp.pictures.example ESMTP\r\n", "protocol"),
        (b"", "protocol"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + PICTURE, "protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 19), "protocol"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20000, "protocol"),
        (CHUNKED + b"0\r\nX: " + b"y" * (1 << 19), "protocol"),
    ],
)
def test_what_is_no_image(host: Host, page: bytes, why: str) -> None:
    host.pages["/cat.png"] = page
    assert reason(host) == why


PIECES = (
    b"HTTP/1.1 ",
    b"200 OK",
    b"302 ",
    b"\r\n",
    b"Content-Type: image/png",
    b"Content-Length: 7",
    b"chunked",
    b"0\r\n",
)
PIECES += (
    b"Transfer-Encoding: ",
    b"Location: http://a.example/",
    b"Connection: close",
    b"1\r\nx\r\n",
    b"image",
    b"\n",
    b" ",
)


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=20).map(b"".join),
    st.integers(0, len(CHUNKED)),
    st.integers(1, 40),
)
def test_whatever_comes_is_an_image_a_redirect_or_an_error(tail: bytes, kept: int, step: int) -> None:
    data = CHUNKED[:kept] + tail

    async def run() -> None:
        reader = asyncio.StreamReader()
        for start in range(0, len(data), step):
            reader.feed_data(data[start : start + step])
        reader.feed_eof()
        try:
            found = await _read(reader, Room(8), Room(9))
        except (Unfetched, HttpParserError, HttpParserUpgrade):
            return
        assert found and len(found) <= 8 if isinstance(found, bytes) else found.isascii()

    asyncio.run(run())


def test_sizes(host: Host) -> None:
    size = len(PICTURE)
    assert fetch(host, most=size) == PICTURE and fetch(host, together=Room(size)) == PICTURE
    assert reason(host, most=size - 1) == reason(host, together=Room(size - 1)) == "size"
    for head in ("", "Transfer-Encoding: chunked\r\n"):  # sizes that nobody announced

        async def endless(writer: asyncio.StreamWriter, head: str = head) -> None:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{head}\r\n".encode())
            while True:
                writer.write((b"1000\r\n" if head else b"") + bytes(0x1000) + (b"\r\n" if head else b""))
                await writer.drain()

        host.pages["/cat.png"] = endless
        assert reason(host) == "size"
    host.pages["/cat.png"] = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n"
    assert reason(host) == "size"


def test_hosts_that_take_their_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        for byte in response():
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    host.pages["/cat.png"] = slowly
    with pytest.raises(TimeoutError):
        fetch(host, seconds=0.3)
    monkeypatch.setattr(image_fetch, "CONNECT_SECONDS", 0.1)

    async def connect(address: object, port: int) -> socket.socket:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(host, "connect", connect)
    assert reason(host) == "unconnected"


# Where it may lead ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.7"], ["169.254.169.254"], ["::1"], ["::ffff:93.184.215.14"], ["fe80::1%eth0"],
        [PUBLIC, "192.168.0.1"], ["2606:4700:4700::1111", "fd00:ec2::254"], [PUBLIC] * 5 + ["127.0.0.1"],
    ],
)  # fmt: skip
def test_one_closed_address_closes_the_host(host: Host, addresses: list[str]) -> None:
    host.names["pictures.example"] = [addresses]
    assert reason(host) == "address" and host.connected == []


def test_names_that_change_their_address(host: Host) -> None:
    """A name is asked for once; the address that was checked is the one that is connected to."""
    host.names["pictures.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch(host) == PICTURE
    assert host.connected == [(PUBLIC, 80)] and host.resolved == ["pictures.example"]
    assert reason(host) == "address"
    host.names["pictures.example"] = [[PUBLIC], ["127.0.0.1"]]
    host.pages["/cat.png"] = redirect("/dog.png")  # and again for every redirect
    assert reason(host) == "address" and len(host.connected) == 2


def test_names_without_an_address(host: Host) -> None:
    assert reason(host, "http://unknown.example/") == "unresolved"
    host.names["pictures.example"] = [[]]
    assert reason(host) == "unresolved"
    host.names["pictures.example"] = [["no address"]]
    assert reason(host) == "unresolved" and host.connected == []


def test_the_systems_own_names() -> None:
    """The resolver that is not a test's: a name of this machine is one of a closed address."""

    async def run() -> None:
        fetcher = Fetcher(PLAIN)
        with pytest.raises(Unfetched) as caught:
            await fetcher.fetch(Target("http", "localhost", 80, "/"), MOST, Room(MOST), [])
        fetcher.close()
        assert caught.value.reason == "address"

    asyncio.run(run())


def test_the_next_address_is_tried(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.names["pictures.example"] = [["2606:4700:4700::1111", PUBLIC]]
    reached = host.connect

    async def connect(address, port):  # type: ignore[no-untyped-def]
        if address.version == 6:
            raise OSError("no route")
        return await reached(address, port)

    monkeypatch.setattr(host, "connect", connect)
    assert fetch(host) == PICTURE and host.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_this_machine_is_not_connected_to(address: str) -> None:
    """Whatever its addresses are: behind one that is public, services may trust whoever is on the machine."""
    family = socket.AF_INET if "." in address else socket.AF_INET6
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6: run it where `ip -6 addr show lo` has ::1")
    with listener, pytest.raises(OSError, match="this machine's own"):
        asyncio.run(connected(ip_address(address), listener.getsockname()[1]))


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://localhost/",
        "//evil.org/", "ftp://pictures.example/", "file:///etc/passwd", "http://pictures.example:8080/",
        "http://u@pictures.example/", "http://pictures.example:x/", "http://[", "http://pictures.example/a b", "http://sub.evil.org/cat.png",
    ],
)  # fmt: skip
def test_redirects_that_are_not_followed(host: Host, location: str) -> None:
    host.pages["/cat.png"] = redirect(location)
    assert reason(host) == "redirect" and len(host.connected) == 1


def test_redirects(host: Host) -> None:
    host.names["inside.example"] = [["10.1.2.3"]]
    for status in ("301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"):
        host.pages["/cat.png"] = redirect("dog.png", status)
        assert fetch(host) == OTHER
    host.pages["/cat.png"] = redirect("http://inside.example/cat.png")
    connections = len(host.connected)
    assert reason(host) == "address" and len(host.connected) == connections + 1
    host.pages |= {f"/{i}": redirect(f"/{i + 1}") for i in range(9)}
    host.pages["/3"] = response()
    assert fetch(host, "http://pictures.example/0") == PICTURE
    assert reason(host, "http://pictures.example/5") == "redirect"
    host.pages["/cat.png"] = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"
    assert reason(host) == "redirect"


# TLS -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loop", LOOPS)
def test_tls_is_checked_against_the_name(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOOPS, "used", LOOPS[loop])
    server, trusting = certificate(tmp_path, "pictures.example")
    asked: list[str | None] = []
    server.sni_callback = lambda connection, name, context: asked.append(name)
    secure = replace(PLAIN, http=False)
    with hosting(server) as host:
        host.names["other.example"] = [[PUBLIC]]
        assert fetch(host, "https://pictures.example/cat.png", secure, context=trusting) == PICTURE
        assert asked == ["pictures.example"] and host.connected == [(PUBLIC, 443)]
        assert reason(host, "https://other.example/cat.png", allowed=secure, context=trusting) == "certificate"
        # Whom the system trusts, of which this one is not.
        assert reason(host, "https://pictures.example/cat.png", allowed=secure) == "certificate"
        host.pages["/cat.png"] = redirect("http://pictures.example/cat.png")
        assert reason(host, "https://pictures.example/cat.png", allowed=secure, context=trusting) == "redirect"
