"""The images that a request names by URL: refused, or fetched within bounds of number, size and time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from herder.chat.message import ImageLink, ImagePart
from herder.core.sizes import bound_text
from herder.images.decode import MAX_BYTES
from herder.serve.config import Config
from herder.serve.fields import FieldError
from herder.serve.image_urls import NotAllowed, Target, read_target
from herder.serve.log import Log
from herder.serve.wire import ChatRequest

if TYPE_CHECKING:
    from herder.serve.exchange import Exchange
    from herder.serve.image_fetch import Fetcher, Room, Unfetched

AT_ONCE = 64  # images that the server fetches; others wait, within their time

T = TypeVar("T")


class LinkedImages:
    """What becomes of URLs of images. fetcher: None makes one where the configuration names hosts; a server that
    fetches nothing never loads what opens connections."""

    def __init__(self, config: Config, log: Log, fetcher: Fetcher | None = None) -> None:
        self._allowed, self._limits, self._log = config.images, config.limits, log
        self._fetcher = fetcher
        if config.offline or not config.images.hosts:
            self._fetcher = None
        elif fetcher is None:
            from herder.serve.image_fetch import Fetcher

            self._fetcher = Fetcher(config.images)
        self._slots = asyncio.Semaphore(AT_ONCE)

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.close()

    def check(self, wanted: object) -> dict[Target, list[ImageLink]]:
        """The links of a request. Raises FieldError for the first that is not allowed; nothing is fetched yet."""
        found: dict[Target, list[ImageLink]] = {}
        for count, link in enumerate(_links(wanted), 1):
            if self._fetcher is None:
                why = "is a URL, and this server fetches none: send the image itself, as base64"
                raise FieldError(f"{link.where} {why}", link.where)
            if count > self._limits.image_urls:
                why = f"is one URL more than the {self._limits.image_urls} that a conversation may have"
                raise FieldError(f"{link.where} {why}: send images as base64", link.where)
            try:
                found.setdefault(read_target(link.url, self._allowed), []).append(link)
            except NotAllowed as error:
                raise FieldError(f"{link.where} {error}", link.where) from None
        return found

    async def fetched(self, wanted: T, exchange: Exchange) -> T:
        """The request with its images in place. One that has a deadline has less time left then. Raises FieldError for
        a link that is not allowed or cannot be had."""
        links = self.check(wanted)
        if not links:
            return wanted
        assert isinstance(wanted, ChatRequest) and self._fetcher is not None
        from herder.serve.image_fetch import Room

        started = monotonic()
        seconds = min(self._limits.image_seconds, wanted.deadline or self._limits.image_seconds)
        together = Room(self._limits.body)  # what the request could have sent itself
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    target: group.create_task(self._image(target, named[0].where, seconds, together, exchange))
                    for target, named in links.items()
                }
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        data = {id(link): tasks[target].result() for target, named in links.items() for link in named}
        messages = tuple(
            replace(
                message,
                parts=tuple(ImagePart(data[id(part)]) if id(part) in data else part for part in message.parts or ()),
            )
            if message.images
            else message
            for message in wanted.messages
        )
        left = None if wanted.deadline is None else max(wanted.deadline - (monotonic() - started), 1e-3)
        return replace(wanted, messages=messages, deadline=left)

    async def _image(self, target: Target, where: str, seconds: float, together: Room, exchange: Exchange) -> bytes:
        from herder.serve.image_fetch import Unfetched

        assert self._fetcher is not None
        started = monotonic()
        hosts: list[str] = []
        outcome = "given up"
        size = 0
        try:
            async with asyncio.timeout(seconds), self._slots:
                data = await self._fetcher.fetch(target, MAX_BYTES, together, hosts)
            outcome, size = "fetched", len(data)
            return data
        except Unfetched as error:
            outcome = error.reason
            raise FieldError(f"{where} {_why(error, target.host)}", where) from None
        except TimeoutError:
            outcome = "time"
            raise FieldError(
                f"{where}: {target.host} did not give the image within {seconds:g} s: send it as base64", where
            ) from None
        finally:
            exchange.image_hosts = tuple(dict.fromkeys((*exchange.image_hosts, *hosts)))
            self._log.image(exchange, hosts, outcome, monotonic() - started, size)


def _links(wanted: object) -> list[ImageLink]:
    if not isinstance(wanted, ChatRequest):
        return []
    return [part for message in wanted.messages for part in message.images if isinstance(part, ImageLink)]


def _why(error: Unfetched, host: str) -> str:
    """What the client hears. Whether a name is unknown, has an address that is not public, or nobody listens there, is
    not told apart: it would map a network that the client does not see."""
    match error.reason:
        case "status":
            why = f"cannot be fetched: {host} answers with status {error.status}"
        case "redirect":
            why = f"cannot be fetched: {host} redirects to where this server does not fetch images from"
        case "type" | "encoding":
            why = f"cannot be fetched: what {host} answers is no image"
        case "size":
            return f"is too large: an image may have {bound_text(MAX_BYTES)}, and all of them what a request may have"
        case _:
            why = f"cannot be fetched from {host}"
    return f"{why}: send the image itself, as base64"
