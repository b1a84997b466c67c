"""A host of images on this machine that stands in for public ones: names resolve to what a test says, and connections
to those addresses come here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from herder.serve.addresses import Address
from herder.serve.config import Images
from herder.serve.image_fetch import Fetcher
from tests.images.pictures import file_of, picture

PICTURE = file_of(picture(28, 28))
OTHER = file_of(picture(28, 28, seed=5))
PUBLIC = "93.184.215.14"

Page = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = PICTURE, head: str = "Content-Type: image/png", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(b"secret of the host", f"Location: {location}\r\nContent-Type: text/html", status)


@dataclass
class Host:
    """pages: what a path gives. names: what a name resolves to, one list after the other where there are several, the
    last for good. heads: of the requests that came. resolved, connected: what the fetcher asked for."""

    port: int = 0
    pages: dict[str, Page] = field(default_factory=lambda: {"/cat.png": response(), "/dog.png": response(OTHER)})
    names: dict[str, list[list[str]]] = field(default_factory=lambda: {"pictures.example": [[PUBLIC]]})
    heads: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    def fetcher(self, allowed: Images, context: ssl.SSLContext | None = None) -> Fetcher:
        return Fetcher(allowed, resolve=self.resolve, connect=self.connect, context=context)

    def resolve(self, name: str, port: int) -> list[str]:
        self.resolved.append(name)
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[name]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(self, address: Address, port: int) -> socket.socket:
        self.connected.append((str(address), port))
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        return connection

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            page = self.pages.get(head.split()[1], response(b"nothing", status="404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
        writer.close()


@contextlib.contextmanager
def hosting(context: ssl.SSLContext | None = None) -> Iterator[Host]:
    """context: speaks TLS with its certificate."""
    host = Host()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stopped = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(host.answer, "127.0.0.1", 0, ssl=context)
        host.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stopped.wait()
        server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), name="image-host", daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(of a server that has this name, of a client that trusts it)."""
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += ["-days", "2", "-subj", "/CN=herder", "-addext", f"subjectAltName=DNS:{name}"]
    request += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(request, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "certificate.pem"))
