"""A live server under requests that mean it harm: images, keys, and a lenient server's fields."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from herder.serve import keys_store
from herder.serve.config import Config, Limits
from herder.serve.keys import make as make_key
from tests.images.pictures import file_of, picture
from tests.images.test_decode import png_header
from tests.serve.live import Live, live
from tests.serve.models import fake_llm, keyed_server
from tests.serve.seeing import seeing_llm

CHAT = "/v1/chat/completions"
SMALL = file_of(picture(28, 28))


@pytest.fixture(scope="module")
def seeing() -> Iterator[Live]:
    with live(seeing_llm(), names=("tiny",), config=Config(limits=Limits(body=1 << 23))) as running:
        yield running


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shown(served: Live, *urls: str) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    return httpx.post(served.url + CHAT, json=body, timeout=60, trust_env=False)


def test_images(seeing: Live) -> None:
    assert shown(seeing, url_of(SMALL)).status_code == 200
    for url, words in (
        (url_of(png_header(30_000, 30_000)), "30000 x 30000 pixels"),  # a bomb: a few bytes, 2.7 GB decoded
        (url_of(png_header(2**31 - 1, 2**31 - 1)), "pixels"),
        (url_of(png_header(8192, 8192, bytes(8192 * 3))), "messages[0]"),  # legal size, and no pixels
        (url_of(SMALL[: len(SMALL) // 2]), "messages[0]"),
        (url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "messages[0]"),
        (url_of(b"%PDF-1.7", "application/pdf"), "messages[0]"),
        (url_of(b"MZ" + bytes(100)), "messages[0]"),
        ("data:image/png;base64,!!!", "messages[0]"),
        ("data:image/png;base64,", "messages[0]"),
        ("file:///etc/passwd", "messages[0]"),
        ("/etc/passwd", "messages[0]"),
    ):
        answer = shown(seeing, url)
        assert answer.status_code == 400 and words in answer.text and "root:" not in answer.text, (
            url[:60],
            answer.text,
        )
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert shown(seeing, url_of(bytes(1 << 23))).status_code == 413
    for count, words in ((1100, "has 1100 elements: at most 1024"), (1020, "has 1020 images: at most 32 are taken")):
        many = shown(seeing, *[url_of(SMALL)] * count)
        assert many.status_code == 400 and words in many.text, many.text
    assert shown(seeing, url_of(SMALL)).status_code == 200, "and it serves on"


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    database = keys_store.connect(path, create=True)
    made, gone, late = make_key("alice"), make_key("bob"), make_key("carol", expires=time.time() - 1)
    for one in (made, gone, late):
        keys_store.add(database, one.key)
    keys_store.revoke(database, "bob")
    database.close()

    with live(config=Config(keys=str(path)), make=keyed_server) as served:

        def status(key: str, route: str = "/v1/models", **headers: str) -> int:
            sent = {"authorization": f"Bearer {key}", **headers}
            return httpx.get(served.url + route, headers=sent, trust_env=False).status_code

        good = made.text
        assert status(good) == 200
        prefix, id, secret = good.split("_")
        other_secret = gone.text.split("_")[2]
        wrong = ["x", "herder_", f"{prefix}_{id}_", f"{prefix}_{id}_{secret[:-1]}", f"{prefix}_{id}_{secret}x"]
        wrong += [
            f"{prefix}_{id}_{other_secret}",
            f"{prefix}_%_{secret}",
            f"{prefix}_' OR 1=1 --_{secret}",
            "a" * 60_000,
        ]
        wrong += [good.upper(), good.replace("_", "-"), made.key.digest.hex(), gone.text, late.text]
        for key in wrong:
            assert status(key) == 401, key[:80]
        assert status("wrong", **{"x-api-key": good}) == 401, "the first that is sent counts"
        unguarded = {"/health", "/health/live", "/health/ready", "/", "/docs", "/openapi.json"}
        for route, operations in httpx.get(f"{served.url}/openapi.json", trust_env=False).json()["paths"].items():
            for method in set(operations) & {"get", "post", "delete"}:
                answer = httpx.request(method, served.url + route.replace("{", "").replace("}", ""), trust_env=False)
                assert route in unguarded or answer.status_code == 401, (method, route, answer.status_code)


def test_a_lenient_server() -> None:
    with live(fake_llm(), config=Config(lenient=True)) as served:
        body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        odd = {"evil\r\nset-cookie: a=b": 1, "a, b": 2, "\u202e": 3, "x" * 5000: 4, **{f"f{i}": i for i in range(500)}}
        answer = httpx.post(served.url + CHAT, content=json.dumps({**body, **odd}), trust_env=False)
        named = answer.headers["x-herder-ignored-fields"]
        assert answer.status_code == 200 and "set-cookie" not in answer.headers
        assert named.isascii() and named.isprintable() and len(named) < 8000 and r"evil\r\nset-cookie: a=b" in named
        plain = httpx.post(served.url + CHAT, json=body, trust_env=False)
        assert "x-herder-ignored-fields" not in plain.headers
        assert plain.json()["choices"] == answer.json()["choices"], "what is ignored changes nothing"
        for wrong in ({"temperature": "hot"}, {"messages": []}, {"max_tokens": -1}, {"model": "none"}):
            assert httpx.post(served.url + CHAT, json={**body, **wrong}, trust_env=False).status_code in (400, 404)
