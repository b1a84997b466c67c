"""The vendors' own clients, with an image by URL, against a live server whose model sees."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from google import genai
from google.genai import errors, types

from herder.serve.config import Config, Images, Limits
from herder.serve.linked_images import LinkedImages
from herder.serve.server import Server
from tests.serve.image_host import OTHER, PICTURE, Host, hosting
from tests.serve.live import Live, live
from tests.serve.models import server_of
from tests.serve.seeing import seeing_llm

CAT, GONE, ELSEWHERE = (f"http://{path}" for path in ("pictures.example/cat.png", "pictures.example/no", "evil.org/x"))
ALLOWED = Config(images=Images(("*.example",), http=True), limits=Limits(image_seconds=60))


def data(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosting() as made:
        yield made


@pytest.fixture(scope="module")
def served(host: Host) -> Iterator[Live]:
    def make(config: Config) -> Server:
        server = server_of(seeing_llm(), config=config, names=("tiny",))
        server.images = LinkedImages(config, server.log, host.fetcher(config.images))
        return server

    with live(config=ALLOWED, make=make) as running:
        yield running


def test_a_client_that_goes_away_ends_the_fetching(served: Live, host: Host) -> None:
    gone = threading.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            gone.set()

    host.pages["/slow"] = slowly
    part = {"type": "image_url", "image_url": {"url": "http://pictures.example/slow"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.3, trust_env=False)
    assert gone.wait(30)


def test_openai(served: Live) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

        def asked(url: str, **more: Any) -> Any:
            parts: Any = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
            messages = [{"role": "user", "content": parts}]
            return client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, **more)

        by_url = asked(CAT).choices[0].message.content
        assert (
            by_url == asked(data(PICTURE)).choices[0].message.content != asked(data(OTHER)).choices[0].message.content
        )
        stream = asked(CAT, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]) == by_url
        for url in (GONE, ELSEWHERE):
            with pytest.raises(openai.BadRequestError) as caught:
                asked(url)
            assert caught.value.param == "messages[0].content[1].image_url"

        def responded(url: str) -> str:
            content: Any = [{"type": "input_image", "image_url": url, "detail": "auto"}]
            item: Any = {"role": "user", "content": content}
            return client.responses.create(model="tiny", input=[item], max_output_tokens=12).output_text

        assert responded(CAT) == responded(data(PICTURE)) != responded(data(OTHER))
        with pytest.raises(openai.BadRequestError, match=r"evil\.org"):
            responded(ELSEWHERE)


def test_anthropic(served: Live) -> None:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:

        def asked(source: Any) -> list[Any]:
            block: Any = {"type": "image", "source": source}
            said: Any = {"model": "tiny", "messages": [{"role": "user", "content": [block]}]}
            counted = client.messages.count_tokens(**said).input_tokens
            found = client.messages.create(**said, max_tokens=12)
            assert counted == found.usage.input_tokens + (found.usage.cache_read_input_tokens or 0)
            return [block.text for block in found.content if block.type == "text"]

        def sent(image: bytes) -> dict[str, str]:
            return {"type": "base64", "media_type": "image/png", "data": base64.b64encode(image).decode()}

        assert asked({"type": "url", "url": CAT}) == asked(sent(PICTURE)) != asked(sent(OTHER))
        for url in (GONE, ELSEWHERE):
            with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\].source.url") as caught:
                asked({"type": "url", "url": url})
            assert caught.value.type == "invalid_request_error"


def test_gemini(served: Live) -> None:
    client = genai.Client(api_key="none", http_options={"base_url": served.url})

    def asked(part: types.Part) -> str | None:
        config = types.GenerateContentConfig(max_output_tokens=12)
        return client.models.generate_content(model="tiny", contents=["?", part], config=config).text

    def by_url(url: str) -> str | None:
        return asked(types.Part.from_uri(file_uri=url, mime_type="image/png"))

    sent = [asked(types.Part.from_bytes(data=image, mime_type="image/png")) for image in (PICTURE, OTHER)]
    assert by_url(CAT) == sent[0] != sent[1]
    for url in (GONE, ELSEWHERE):
        with pytest.raises(errors.ClientError) as caught:
            by_url(url)
        [detail] = caught.value.details["error"]["details"]
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
        assert detail["fieldViolations"][0]["field"] == "contents[0].parts[1].fileData.fileUri"
