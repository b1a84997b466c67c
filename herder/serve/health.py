"""Whether the server is alive, and whether its models really answer."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from herder.core.errors import HerderError
from herder.core.request import Finished, FinishReason, Request
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from herder.llm import LLM
    from herder.serve.server import Server

FRESH = 10.0  # seconds for which a token that was generated says that the model works
PATIENCE = 10.0  # seconds for a probe's token


async def readiness(server: Server) -> tuple[bool, dict[str, Any]]:
    """Whether every model that is to be ready from the start is, and a document that says so for each.

    A model is ready when it has generated a token in the last FRESH seconds; one that has been idle is asked for one.
    """
    states = dict(
        await asyncio.gather(*(_state(server, served.name) for served in server.models if served.spec.preload))
    )
    ready = not server.draining and all(state == "ready" for state in states.values())
    return ready, {"status": "ready" if ready else "draining" if server.draining else "not ready", "models": states}


async def _state(server: Server, name: str) -> tuple[str, str]:
    served = server.models.find(name)
    if monotonic() - server.metrics.last_token.get(name, -FRESH) < FRESH:
        return name, "ready"
    if served.llm is None:
        if served.failure is not None:
            line = str(served.failure) if isinstance(served.failure, HerderError | Refusal) else "internal error"
            return name, f"failed: {line}"
        # One that was unloaded because nobody used it would be there again when somebody does.
        return name, "ready" if served.loads and served.loading is None else "loading"
    try:
        async with asyncio.timeout(PATIENCE), server.models.use(name) as llm:
            await probe(llm)
    except TimeoutError:
        return name, f"busy: no token within {PATIENCE:g} s"
    except Exception as error:
        return name, f"failed: {error if isinstance(error, HerderError | Refusal) else 'internal error'}"
    server.metrics.last_token[name] = monotonic()
    return name, "ready"


async def probe(llm: LLM) -> None:
    """Generates one token. Raises what the engine fails with."""
    start = llm.tokenizer.bos_id
    request = Request((0 if start is None else start,), max_tokens=1, priority=-1)
    async with llm.engine.submit_async(request) as stream:
        async for event in stream:
            if isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                if event.reason is FinishReason.ABORT:
                    raise HerderError("the engine has stopped")
