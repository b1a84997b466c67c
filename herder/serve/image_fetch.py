"""Images fetched from URLs, where the configuration allows it: besides weights/hub.py all that opens connections.

A host's name is resolved once, every address that it has is checked, and the connection goes to a checked address: a
name that is resolved again to another one (DNS rebinding) finds nobody who asks. No proxy is used, no cookie or
credential sent, nothing compressed accepted, and no answer is read further than its image.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Literal

import httptools

from herder.serve.addresses import Address, is_public
from herder.serve.config import Images
from herder.serve.image_urls import NotAllowed, Target, read_target

MAX_REDIRECTS = 3
MAX_ADDRESSES = 4  # of a host, that are tried
MAX_BESIDE = 2**18  # bytes of a response that are not its image: heads, sizes of chunks, trailers
CONNECT_SECONDS = 5.0  # for TCP and TLS together
RESOLVERS = 4  # threads: a lookup cannot be given up, and must hold up nothing but other lookups
_READ = 2**16

Resolve = Callable[[str, int], Sequence[str]]
Connect = Callable[[Address, int], Awaitable[socket.socket]]
Reason = Literal[
    "unresolved",
    "address",  # one that is not public
    "unconnected",
    "certificate",
    "protocol",  # what came is no HTTP, or it broke off
    "status",
    "redirect",
    "type",
    "encoding",
    "size",
    "time",
]


class Unfetched(Exception):
    """There is no image. status: of the HTTP response, for the reason "status"."""

    def __init__(self, reason: Reason, status: int = 0) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.status = status


class Room:
    """How many bytes may still come, for one image or for several together."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, count: int) -> None:
        """Raises Unfetched."""
        if count > self.left:
            raise Unfetched("size")
        self.left -= count


class Fetcher:
    """Gets images. resolve: the addresses of a name; it may block. connect: a connected socket that does not block.
    context: whom TLS trusts; None: whom this system trusts."""

    def __init__(
        self,
        allowed: Images,
        *,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve or _addresses
        self._connect = connect or connected
        self._context = context
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="image-names")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, target: Target, most: int, together: Room, hosts: list[str]) -> bytes:
        """The image there, of at most `most` bytes, which it takes from `together`. hosts: gets those that are asked.
        Raises Unfetched. The caller says how long it may take."""
        for _ in range(MAX_REDIRECTS + 1):
            hosts.append(target.host)
            found = await self._get(target, Room(most), together)
            if isinstance(found, bytes):
                return found
            try:
                target = read_target(target.joined(found), self._allowed)
            except NotAllowed:
                raise Unfetched("redirect") from None
        raise Unfetched("redirect")

    async def _get(self, target: Target, room: Room, together: Room) -> bytes | str:
        """The image, or where the host says it is."""
        addresses = await self._checked(target)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._opened(addresses, target)
        except ssl.SSLError:
            raise Unfetched("certificate") from None
        except OSError:  # TimeoutError is one
            raise Unfetched("unconnected") from None
        try:
            writer.write(_request(target))
            return await _read(reader, room, together)
        except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise Unfetched("protocol") from None
        finally:
            writer.transport.abort()

    async def _checked(self, target: Target) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, self._resolve, target.host, target.port)
            addresses = [ip_address(text) for text in dict.fromkeys(found)]
        except (OSError, ValueError):  # UnicodeError, of a name that IDNA does not have, is a ValueError
            raise Unfetched("unresolved") from None
        if not addresses:
            raise Unfetched("unresolved")
        if not all(map(is_public, addresses)):
            raise Unfetched("address")
        return addresses[:MAX_ADDRESSES]

    async def _opened(
        self, addresses: Sequence[Address], target: Target
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first address that answers. Raises OSError."""
        connection = await self._first(addresses, target.port)
        try:
            if target.scheme == "http":
                return await asyncio.open_connection(sock=connection, limit=_READ)
            if self._context is None:  # reads the system's certificates
                self._context = await asyncio.to_thread(ssl.create_default_context)
            return await asyncio.open_connection(
                sock=connection, limit=_READ, ssl=self._context, server_hostname=target.host
            )
        except BaseException:
            connection.close()
            raise

    async def _first(self, addresses: Sequence[Address], port: int) -> socket.socket:
        problem: OSError | None = None
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS / len(addresses)):
                    return await self._connect(address, port)
            except OSError as error:
                problem = error
        raise problem or OSError("no address")


def _addresses(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def connected(address: Address, port: int) -> socket.socket:
    """Raises OSError; also where the address is one of this machine's own, at which it may trust whoever calls."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        if connection.getsockname()[0] == connection.getpeername()[0]:
            raise OSError("the address is this machine's own")
    except BaseException:
        connection.close()
        raise
    return connection


# HTTP ----------------------------------------------------------------------------------------------------------------
def _request(target: Target) -> bytes:
    lines = (
        f"GET {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        "User-Agent: herder",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


class _Response:
    """What httptools' parser tells of a response; informational ones (1xx) are passed over."""

    def __init__(self) -> None:
        self.headers: dict[bytes, list[bytes]] = {}
        self.body: list[bytes] = []
        self.status = 0  # once its head is there
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.setdefault(name.lower(), []).append(value.strip())

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.complete = bool(self.status)
        if not self.status:
            self.headers.clear()

    def header(self, name: bytes) -> bytes:
        """Empty where there is none. Raises Unfetched for several."""
        found = self.headers.get(name, [b""])
        if len(found) > 1:
            raise Unfetched("protocol")
        return found[0]


async def _read(reader: asyncio.StreamReader, room: Room, together: Room) -> bytes | str:
    """The body of an image, or the Location of a redirect. Raises Unfetched, OSError and httptools' errors."""
    response = _Response()
    beside = MAX_BESIDE
    body = bytearray()
    announced = False
    while not response.complete:
        data = await reader.read(_READ)
        if not data:
            if response.status and not response.headers.keys() & {b"content-length", b"transfer-encoding"}:
                break  # its end is that of the connection
            raise Unfetched("protocol")
        response.parser.feed_data(data)
        beside -= len(data) - sum(map(len, response.body))
        if beside < 0:
            raise Unfetched("protocol")
        if response.status and not announced:
            announced = True
            if (location := _judged(response, min(room.left, together.left))) is not None:
                return location
        for part in response.body:
            room.take(len(part))
            together.take(len(part))
            body += part
        response.body.clear()
    if not body:
        raise Unfetched("type")
    return bytes(body)


def _judged(response: _Response, most: int) -> str | None:
    """What a head says: None for an image, the Location of a redirect; Unfetched for anything else."""
    if response.status in (301, 302, 303, 307, 308):
        location = response.header(b"location")
        if not location or not location.isascii():
            raise Unfetched("redirect")
        return location.decode("ascii")
    if response.status != 200:
        raise Unfetched("status", response.status)
    if not response.header(b"content-type").lower().startswith(b"image/"):
        raise Unfetched("type")
    if response.header(b"content-encoding").lower() not in (b"", b"identity"):
        raise Unfetched("encoding")
    if response.header(b"transfer-encoding").lower() not in (b"", b"chunked"):
        raise Unfetched("encoding")
    length = response.header(b"content-length")
    if length.isdigit() and int(length) > most:
        raise Unfetched("size")
    return None
