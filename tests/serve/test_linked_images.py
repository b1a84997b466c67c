"""Images that requests name by URL: refused unless the configuration says otherwise, and then seen as if they had been
sent, in every dialect."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from herder.images import prepare
from herder.images.header import read_header
from herder.llm import LLM
from herder.serve.app import build_app
from herder.serve.audit import Audited
from herder.serve.config import Config, Images, Limits
from herder.serve.gate import Open
from herder.serve.linked_images import LinkedImages
from herder.serve.log import Log
from tests.serve.image_host import OTHER, PICTURE, Host, hosting, redirect, response
from tests.serve.models import fake_llm, server_of
from tests.serve.seeing import seeing_llm

CAT, DOG = "http://pictures.example/cat.png", "http://pictures.example/dog.png"
OPEN = Config(images=Images(("*.example",), http=True))


def openai(*images: str | bytes) -> dict[str, Any]:
    urls = [one if isinstance(one, str) else f"data:image/png;base64,{_base64(one)}" for one in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


def responses(*images: str | bytes) -> dict[str, Any]:
    urls = [one if isinstance(one, str) else f"data:image/png;base64,{_base64(one)}" for one in images]
    parts = [{"type": "input_image", "image_url": url} for url in urls]
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "?"}, *parts]}]}


def anthropic(*images: str | bytes) -> dict[str, Any]:
    sources = [
        {"type": "url", "url": one}
        if isinstance(one, str)
        else {"type": "base64", "media_type": "image/png", "data": _base64(one)}
        for one in images
    ]
    return {"messages": [{"role": "user", "content": [{"type": "image", "source": source} for source in sources]}]}


def anthropic_result(*images: str | bytes) -> dict[str, Any]:
    [asked] = anthropic(*images)["messages"]
    call = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": asked["content"]}
    return {"messages": [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]}


def gemini(*images: str | bytes) -> dict[str, Any]:
    parts = [
        {"fileData": {"fileUri": one, "mimeType": "image/png"}}
        if isinstance(one, str)
        else {"inlineData": {"data": _base64(one), "mimeType": "image/png"}}
        for one in images
    ]
    return {"contents": [{"role": "user", "parts": [{"text": "?"}, *parts]}]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


Body = Callable[..., dict[str, Any]]
TINY = {"model": "tiny"}
# Path, body, what else it needs, and the field that an error names.
ROUTES: dict[str, tuple[str, Body, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", openai, TINY | {"max_tokens": 8}, "messages[0].content[1].image_url"),
    "stream": ("/v1/chat/completions", openai, TINY | {"stream": True}, "messages[0].content[1].image_url"),
    "tokenize": ("/tokenize", openai, TINY, "messages[0].content[1].image_url"),
    "responses": ("/v1/responses", responses, TINY | {"max_output_tokens": 8, "store": False},
                  "input[0].content[1].image_url"),
    "input tokens": ("/v1/responses/input_tokens", responses, TINY, "input[0].content[1].image_url"),
    "messages": ("/v1/messages", anthropic, TINY | {"max_tokens": 8}, "messages[0].content[0].source.url"),
    "results": ("/v1/messages", anthropic_result, TINY | {"max_tokens": 8},
                "messages[1].content[0].content[0].source.url"),
    "count": ("/v1/messages/count_tokens", anthropic, TINY, "messages[0].content[0].source.url"),
    "generate": ("/v1beta/models/tiny:generateContent", gemini, {}, "contents[0].parts[1].fileData.fileUri"),
    "gemini's count": ("/v1beta/models/tiny:countTokens", gemini, {}, "contents[0].parts[1].fileData.fileUri"),
}  # fmt: skip


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosting() as made:
        yield made


class Asked:
    """Sends bodies to a server of its own. log: what it wrote."""

    def __init__(self, host: Host, config: Config = OPEN, llm: Callable[[], LLM] = seeing_llm) -> None:
        self.log = io.StringIO()
        self._host, self._config, self._llm = host, config, llm
        self.audit: Path | None = None

    def __call__(self, *bodies: tuple[str, dict[str, Any]], **headers: str) -> list[httpx.Response]:
        async def run() -> list[httpx.Response]:
            server = server_of(self._llm(), config=self._config, names=("tiny",))
            server.log = Log(out=self.log)
            fetcher = self._host.fetcher(self._config.images)
            server.images = LinkedImages(self._config, server.log, fetcher)
            if self.audit is not None:
                server.gate = Audited(Open(), self.audit)
            transport = httpx.ASGITransport(build_app(server), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
                found = [await client.post(path, json=body, headers=headers) for path, body in bodies]
            await server.close()
            return found

        return asyncio.run(run())

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.getvalue().splitlines()) if line["event"] == event]


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_fetched_unless_the_configuration_says_so(host: Host, route: str) -> None:
    path, body, more, field = ROUTES[route]
    before = len(host.resolved)
    closed = (Config(), replace(OPEN, offline=True))
    for config in closed:
        for llm in (seeing_llm, fake_llm):
            [answer] = Asked(host, config, llm)((path, body(CAT) | more))
            assert answer.status_code == 400, answer.text
            assert f"{field} is a URL, and this server fetches none" in answer.text and len(host.resolved) == before


@pytest.mark.parametrize("route", ROUTES)
def test_an_image_is_the_same_by_url(host: Host, route: str) -> None:
    path, body, more, _ = ROUTES[route]
    sent, named, other = Asked(host)(*[(path, body(*images) | more) for images in ((PICTURE,), (CAT,), (DOG,))])
    assert sent.status_code == named.status_code == other.status_code == 200, named.text
    assert _said(named) == _said(sent)
    if "count" not in route and "token" not in route:
        assert _said(named) != _said(other)


def _said(answer: httpx.Response) -> object:
    """What an answer has that does not change from one to the next."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return [chunk["choices"] for chunk in chunks]
    document = answer.json()
    found = [
        document.get(name) for name in ("choices", "content", "candidates", "tokens", "input_tokens", "totalTokens")
    ]
    return [*found, *[item["content"][0]["text"] for item in document.get("output", ())]]


@pytest.mark.parametrize("route", ROUTES)
def test_an_image_that_cannot_be_had_is_the_vendors_own_error(host: Host, route: str) -> None:
    path, body, more, field = ROUTES[route]
    host.names["inside.example"] = [["10.1.2.3"]]
    urls = ["http://inside.example/admin", "http://pictures.example/none.png", "http://evil.org/x", "http://127.0.0.1/"]
    for url, answer in zip(urls, Asked(host)(*[(path, body(url) | more) for url in urls]), strict=True):
        assert answer.status_code == 400, url
        text = answer.text
        assert field in text and "\\n" not in text
        assert "10.1.2.3" not in text and "nothing" not in text and "admin" not in text and "none.png" not in text


def chat(*images: str | bytes, **more: Any) -> tuple[str, dict[str, Any]]:
    path, body, base, _ = ROUTES["chat"]
    return path, body(*images) | base | more


def test_a_client_cannot_map_a_network(host: Host) -> None:
    """A name that is unknown, one of a private address, and one behind which nobody listens, are one answer."""
    host.names |= {"inside.example": [["10.1.2.3"]], "silent.example": [["93.184.215.99"]]}
    texts = set()
    for name in ("unknown", "inside", "silent"):
        asked = Asked(host)
        if name == "silent":
            host.pages["/x"] = b""
        [answer] = asked(chat(f"http://{name}.example/x"))
        texts.add(answer.json()["error"]["message"].replace(name, "NAME"))
    assert len(texts) == 1
    host.pages["/away"] = redirect("http://inside.example/secret")
    host.pages["/far"] = redirect("http://elsewhere.test/secret")
    away, far = Asked(host)(chat("http://pictures.example/away"), chat("http://pictures.example/far"))
    for answer in (away, far):
        assert "pictures.example" in answer.text and "secret" not in answer.text
        assert "inside" not in answer.text and "elsewhere" not in answer.text


def test_how_many_and_how_large(host: Host) -> None:
    config = replace(OPEN, limits=Limits(image_urls=2, body=len(PICTURE) + len(OTHER) - 1))
    two, same, three = Asked(host, config)(chat(CAT, DOG), chat(CAT, CAT), chat(CAT, CAT, CAT))
    assert two.status_code == 400 and "too large" in two.text
    assert same.status_code == 200
    assert three.status_code == 400 and "messages[0].content[3].image_url is one URL more than the 2" in three.text


def test_one_url_is_fetched_once_for_a_request(host: Host) -> None:
    before = len(host.heads)
    named, sent = Asked(host)(chat(CAT, DOG, CAT), chat(PICTURE, OTHER, PICTURE))
    assert _said(named) == _said(sent) and len(host.heads) == before + 2


def test_time_is_bounded(host: Host) -> None:
    async def never(writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        await asyncio.sleep(20)

    host.pages["/never"] = never
    url = "http://pictures.example/never"
    config = replace(OPEN, limits=Limits(image_seconds=0.2))
    [slow] = Asked(host, config)(chat(url))
    [hasty] = Asked(host)(chat(url, deadline=0.2))
    for answer in (slow, hasty):
        assert answer.status_code == 400 and "did not give the image within 0.2 s" in answer.text


def test_a_model_that_does_not_see_fetches_nothing(host: Host) -> None:
    before = len(host.resolved)
    [answer] = Asked(host, llm=fake_llm)(chat(CAT))
    assert answer.status_code == 400 and "reads only text" in answer.text and len(host.resolved) == before


def test_what_is_no_picture_is_refused_as_one_that_was_sent(host: Host) -> None:
    host.pages["/bomb.png"] = response(b"no picture")
    [answer] = Asked(host)(chat("http://pictures.example/bomb.png"))
    assert answer.status_code == 400 and "messages[0].content[1]" in answer.text


def test_logs_name_the_host_only(host: Host, tmp_path: Path) -> None:
    asked = Asked(host)
    asked.audit = tmp_path / "audit.jsonl"
    query = "http://pictures.example/cat.png?token=secret"
    host.names["cdn.example"] = host.names["pictures.example"]
    host.pages["/cat.png?token=secret"] = redirect("http://cdn.example/cat.png")
    asked(chat(query), chat("http://pictures.example/gone.png"), chat(PICTURE))
    fetched, failed = asked.events("image")
    hosts = ["pictures.example", "cdn.example"]  # the second where the first redirects
    assert (fetched["hosts"], fetched["outcome"], fetched["bytes"]) == (hosts, "fetched", len(PICTURE))
    assert (failed["hosts"], failed["outcome"], failed["bytes"]) == (["pictures.example"], "status", 0)
    assert fetched["id"] == asked.events("request")[0]["id"]
    lines = [json.loads(line) for line in asked.audit.read_text().splitlines()]
    assert [line.get("image_hosts") for line in lines] == [hosts, ["pictures.example"], None]
    for text in (asked.log.getvalue(), asked.audit.read_text()):
        assert "secret" not in text and ".png" not in text


def test_a_stored_conversation_keeps_the_url(host: Host) -> None:
    """And fetches it again when it goes on."""

    async def run() -> None:
        server = server_of(seeing_llm(), config=OPEN, names=("tiny",))
        server.images = LinkedImages(OPEN, server.log, host.fetcher(OPEN.images))
        transport = httpx.ASGITransport(build_app(server), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            body = responses(CAT) | TINY | {"max_output_tokens": 4}
            first = (await client.post("/v1/responses", json=body)).json()
            before = len(host.heads)
            goes_on = {"model": "tiny", "input": "And?", "previous_response_id": first["id"], "max_output_tokens": 4}
            second = await client.post("/v1/responses", json=goes_on)
            assert second.status_code == 200, second.text
            assert len(host.heads) == before + 1
            items = (await client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
            assert items[0]["content"][1]["image_url"] == CAT
        await server.close()

    asyncio.run(run())


@pytest.mark.parametrize("route", ROUTES)
def test_pixels_are_counted_before_any_is_decoded(host: Host, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent or fetched, from the headers: none of these has pixels that could be decoded."""
    monkeypatch.setattr(prepare, "read_rgb", lambda *_: pytest.fail("decoded"))
    path, body, more, _ = ROUTES[route]
    large = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 6000, 4000)
    host.pages["/large.png"] = response(large)
    url = "http://pictures.example/large.png"
    config = replace(OPEN, limits=Limits(image_pixels=50_000_000))
    asked = [(path, body(*images) | more) for images in ([large] * 3, [url] * 3, [large, url, large])]
    for answer in Asked(host, config)(*asked):
        assert answer.status_code == 400, answer.text
        assert "images of 72000000 pixels together: at most 50000000 are read" in answer.text


def test_images_are_counted_however_they_come(host: Host) -> None:
    config = replace(OPEN, limits=Limits(images=2))
    two, sent, named = Asked(host, config)(chat(PICTURE, CAT), chat(PICTURE, PICTURE, OTHER), chat(CAT, CAT, PICTURE))
    assert two.status_code == 200, two.text
    for answer in (sent, named):
        assert answer.status_code == 400 and "has 3 images: at most 2 are taken" in answer.text


def test_pixels_that_just_fit(host: Host) -> None:
    header = read_header(PICTURE)
    size = header.width * header.height
    fits, over = (replace(OPEN, limits=Limits(image_pixels=most)) for most in (2 * size, 2 * size - 1))
    assert Asked(host, fits)(chat(PICTURE, CAT))[0].status_code == 200
    assert Asked(host, over)(chat(PICTURE, CAT))[0].status_code == 400
