"""A real server on a free port, in a thread, for clients that want a socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from herder.llm import LLM
from herder.serve.app import build_app
from herder.serve.config import Config
from herder.serve.lifecycle import web_server
from herder.serve.server import Server
from herder.serve.sockets import listen
from tests.serve.models import server_of


@dataclass(slots=True)
class Live:
    """url: without a slash at the end. call(): runs a function on the server's event loop and returns its result."""

    url: str
    server: Server
    loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[], object]) -> object:
        async def run() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)


@contextlib.contextmanager
def live(
    *llms: LLM,
    config: Config | None = None,
    names: tuple[str, ...] = ("tiny", "other"),
    make: Callable[[Config], Server] | None = None,
) -> Iterator[Live]:
    """Serves these models under these names until the block ends; the models are closed then.

    make: builds the server instead, on its event loop (with a gate, a store, ...).
    """
    config = replace(config or Config(), port=0)
    started: list[Live | BaseException] = []
    event = threading.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        server = make(config) if make is not None else server_of(*llms, config=config, names=names)
        web = web_server(config, build_app(server))
        sockets = listen(config)
        port = sockets[0].getsockname()[1]
        running = asyncio.create_task(web.serve(sockets))
        while not web.started and not running.done():
            await asyncio.sleep(0.001)
        started.append(Live(f"http://{config.host}:{port}", server, loop))
        event.set()
        stop.append(lambda: setattr(web, "should_exit", True))
        await running

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            started.append(error)
            raise
        finally:
            event.set()
            loop.close()

    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=run, name="live-server", daemon=True)
    thread.start()
    assert event.wait(60)
    if not isinstance(started[0], Live):
        raise started[0]
    try:
        yield started[0]
    finally:
        if stop:
            stop[0]()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
