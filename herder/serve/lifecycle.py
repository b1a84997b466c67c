"""From a configuration to a running server and back: sockets, preloading, the ready line, draining on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herder.core import machine
from herder.core.errors import HerderError, ModelNotFound, StorageError, UnsupportedModel
from herder.core.sizes import bound_text, bytes_text
from herder.serve.config import Config
from herder.serve.health import probe
from herder.serve.image_urls import described as images_described
from herder.serve.log import Log
from herder.serve.models import Models, Served, load, measure
from herder.serve.sockets import BACKLOG, Sockets, listen
from herder.serve.tls import check_tls
from herder.weights import store

if TYPE_CHECKING:
    import uvicorn

    from herder.serve.gate import Gate
    from herder.serve.pulled import Pulled
    from herder.serve.server import Server

MISSING = "herder serve needs what the base install has not: pip install 'herder[serve]'"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def check_installed() -> None:
    """Raises UnsupportedModel where the extra is not installed."""
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "httptools", "prometheus_client"):
        if find_spec(package) is None:
            raise UnsupportedModel(MISSING)


def make_server(config: Config, *, gate: Gate | None = None, log: Log | None = None) -> Server:
    """The server of a configuration, on this machine's models. Call it with an event loop running."""
    from herder.serve.key_gate import open_gate
    from herder.serve.server import Server

    log = log or Log(requests=config.logging.requests)

    def changed(what: str, served: Served, why: str) -> None:
        values: dict[str, Any] = {"model": served.name}
        if what == "loaded":
            values |= {"seconds": round(served.load_seconds, 3), "bytes": served.bytes}
        elif what == "failed":
            if served.spec.preload and not served.loads:
                return  # the start fails with it, and whoever started the server is told
            values["error"] = why
        log.event(what, **values)

    models = Models(
        config.models,
        partial(load, offline=config.offline),
        partial(measure, parallel=config.parallel, offline=config.offline),
        budget=config.memory,
        idle=config.idle,
        changed=changed,
    )
    pulled = _pulled(config)
    for spec in pulled.specs() if pulled is not None else ():
        if store.find(spec.source) is not None:
            models.add(spec)  # a name that the configuration has keeps its meaning
    server = Server(config, models, gate=gate or open_gate(config), log=log, pulled=pulled)
    if config.logging.traces is not None:
        from herder.serve.traces import Traces

        server.traces = Traces(config.logging.traces)
    return server


def _pulled(config: Config) -> Pulled | None:
    """What clients have pulled here, where the configuration lets them."""
    if not config.pull:
        return None
    from herder.serve.pulled import Pulled

    return Pulled(machine.state_home() / "pulled.json")


def described(config: Config) -> list[str]:
    """What would run, in lines for a person. Raises HerderError for what can be seen to be wrong: a file that is
    missing, a model that does not fit."""
    check_installed()
    check_tls(config)
    from herder.serve.store import check_store, store_path

    lines = [f"listen on {config.url}" + ("" if config.keys is not None else ", without keys: this machine only")]
    for path in filter(None, (config.tls_certificate, config.tls_key, config.keys)):
        if not Path(path).is_file():
            raise StorageError(f"there is no file {path}, which the configuration names")
    if (responses := store_path(config)) is not None:
        check_store(responses)
    for spec in config.models:
        names = f" (also {', '.join(spec.aliases)})" if spec.aliases else ""
        when = "from the start" if spec.preload else "when asked for"
        found = store.find(spec.source)
        if found is None:
            if not spec.pull or config.offline:
                raise ModelNotFound(
                    f"{spec.name} ({spec.source}) is not on this machine: `herder pull {spec.source}` fetches it"
                )
            lines.append(f"{spec.name}{names}: to be fetched, {when}")
            continue
        need = measure(spec, config.memory, parallel=config.parallel, offline=config.offline)
        lines.append(
            f"{spec.name}{names}: {found}, {when}, context {need.context}, {spec.runtime} runtime, "
            f"{bytes_text(need.bytes)} with {bytes_text(need.kv_memory or 0)} of KV cache"
        )
    if (pulled := _pulled(config)) is not None:
        here = [spec.name for spec in pulled.specs() if store.find(spec.source) is not None]
        lines.append(f"clients may pull models; of those they have: {', '.join(here) or 'none'}")
    lines.append("responses are not stored" if responses is None else f"responses are stored in {responses}")
    memory = "what is free" if config.memory is None else f"{bound_text(config.memory)} ({bytes_text(config.memory)})"
    idle = f"after {config.idle:g} s without a request" if config.idle else "only for another one"
    lines.append(f"memory for models: {memory}; a model is unloaded {idle}")
    limits = config.limits
    lines.append(
        f"at most {limits.queue} requests wait for a model; bodies up to {bound_text(limits.body)}, with up to "
        f"{limits.images} images of {limits.image_pixels} pixels together"
    )
    lines.append(images_described(config.images, offline=config.offline, most=limits.image_urls))
    return lines


def serve(config: Config, ready: Callable[[str], None], *, gate: Gate | None = None) -> int:
    """Runs until a signal; returns the exit code. ready: called with one line when the models that are to be there from
    the start have generated a token. Raises HerderError when they cannot, or the address is taken."""
    check_installed()
    return asyncio.Runner(loop_factory=_loop_factory()).run(_serve(config, ready, gate))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not for this platform: asyncio's own loop
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(config: Config, ready: Callable[[str], None], gate: Gate | None) -> int:
    check_tls(config)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in listen(config)]
        return await _serve_on(sockets, config, ready, gate)


async def _serve_on(sockets: Sockets, config: Config, ready: Callable[[str], None], gate: Gate | None) -> int:
    from herder.serve.store import check_store, store_path

    if (responses := store_path(config)) is not None:
        check_store(responses)
    server = make_server(config, gate=gate)
    # The models load on a thread while the rest of the web stack is imported here.
    names = [spec.name for spec in config.models if spec.preload]
    preloading = asyncio.create_task(_preload(server, names))
    await asyncio.sleep(0)
    try:
        from herder.serve.app import build_app
        from herder.serve.dialects.openai_responses import store_of

        if responses is not None:
            await store_of(server).open()
        web = web_server(config, build_app(server))
    except BaseException:
        preloading.cancel()
        await server.close()
        raise
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.draining:  # asked twice: now
            web.force_exit = True
        else:
            server.draining = True
            server.log.event("draining", seconds=config.limits.drain)
        web.should_exit = True

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    running = asyncio.create_task(web.serve(sockets))
    try:
        await asyncio.wait({preloading, running}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            try:
                await preloading
                while not web.started and not running.done():
                    await asyncio.sleep(0.005)
                if web.started and not web.should_exit:
                    ready(_ready_line(config, sockets[0].getsockname()[1], server, names))
            except HerderError:
                web.should_exit = True
                await running
                raise
        await running
    finally:
        preloading.cancel()
        await server.close()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    server.log.event("stopped")
    return 0


async def _preload(server: Server, names: list[str]) -> None:
    from time import monotonic

    for name in names:
        async with server.models.use(name) as llm:
            await probe(llm)
        server.metrics.last_token[name] = monotonic()


def _ready_line(config: Config, port: int, server: Server, names: list[str]) -> str:
    url = config.url.rsplit(":", 1)[0] + f":{port}"
    served = ", ".join(names or [one.name for one in server.models][:4]) or "no model"
    more = len(config.models) - len(names)
    beside = f" and {more} more on demand" if names and more else ""
    keys = "" if config.keys is not None else ", without keys: this machine only"
    return f"Serving {served}{beside} at {url}{keys}"


def web_server(config: Config, app: Any) -> uvicorn.Server:
    """uvicorn, with nothing of its own: sockets (serve() takes those of listen()), signals, log and headers are ours.
    Ends streams that outlive the drain."""
    import uvicorn

    from herder.serve.connection import Bounded

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Quiet(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            backlog=BACKLOG,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            http=Bounded,
            ws="none",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=max(1, round(config.limits.drain)),
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
        )
    )
