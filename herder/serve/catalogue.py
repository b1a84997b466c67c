"""What a served model is, from its files, loaded or not: for lists of models, and for those who ask about one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from herder.core.errors import HerderError
from herder.serve.config import ModelSpec
from herder.serve.dialect import Problem
from herder.serve.models import Models, Served
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from herder.weights.summary import Summary


@dataclass(frozen=True, slots=True)
class Card:
    """A served model. created: seconds since the epoch, when its file was last changed; 0 if it is not here. path,
    summary: None when the files are not on this machine or cannot be read; `refusal` says why. context: tokens that the
    server gives a sequence, or would at most. bytes: of memory, while loaded. idle: seconds since it was last used,
    None if never; expires: seconds until it is unloaded, None for never."""

    name: str
    aliases: tuple[str, ...]
    created: int
    path: Path | None
    summary: Summary | None
    template: str | None
    refusal: str | None
    context: int
    chats: bool
    sees: bool
    loaded: bool
    bytes: int
    expires: float | None


class Catalogue:
    """The cards of a server's models. Files are read once, on a thread, and again when they have changed."""

    def __init__(self, models: Models, offline: bool = False) -> None:
        self._models, self._offline = models, offline
        self._read: dict[str, tuple[float, Path, Summary, str | None]] = {}

    async def cards(self) -> list[Card]:
        """Of every served model, in the order of the configuration."""
        return [await self.card(served.name) for served in self._models]

    async def card(self, name: str) -> Card:
        """Raises Refusal (not_found) for a name that is not served."""
        served = self._models.find(name)
        created, path, summary, template, refusal = 0.0, None, None, None, None
        try:
            created, path, summary, template = await asyncio.to_thread(self._files, served.spec)
        except (HerderError, Refusal, OSError) as error:
            refusal = str(error)
        llm = served.llm
        context = served.spec.context or (0 if summary is None else summary.config.context)
        return Card(
            name=served.name,
            aliases=served.spec.aliases,
            created=int(created),
            path=path,
            summary=summary,
            template=template,
            refusal=refusal,
            context=context if llm is None else llm.context,
            chats=llm.chat_format is not None if llm is not None else bool(summary and summary.templates),
            sees=llm.sees if llm is not None else bool(summary and summary.config.vision is not None),
            loaded=llm is not None,
            bytes=served.bytes if llm is not None else 0,
            expires=_expires(served),
        )

    def _files(self, spec: ModelSpec) -> tuple[float, Path, Summary, str | None]:
        from herder.weights.source import open_model
        from herder.weights.summary import summarize

        path = local_path(spec, offline=True)
        changed = path.stat().st_mtime
        known = self._read.get(spec.name)
        if known is None or known[:2] != (changed, path):
            with open_model(path) as files:
                known = (changed, path, summarize(files), files.chat_template)
            self._read[spec.name] = known
        return known


def _expires(served: Served) -> float | None:
    return None if served.timer is None else max(0.0, served.timer.when() - asyncio.get_running_loop().time())


def local_path(spec: ModelSpec, offline: bool) -> Path:
    """Where the model lies. One that is not on this machine is fetched only if its configuration says so. Blocks.

    Raises Refusal (not_found) when it is not here, HerderError when it cannot be fetched.
    """
    from herder.weights import store

    path = store.find(spec.source)
    if path is not None:
        return path
    if not spec.pull or offline:
        message = f"{spec.name} is not on this server: its owner can fetch it with `herder pull {spec.source}`"
        raise Refusal(Problem("not_found", message, "model", "model_not_found"))
    return store.resolve(spec.source)
