"""The page at the real server, on the default model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install -r constraints/test.txt")
from playwright.sync_api import expect

from herder.serve import keys_store
from herder.serve.config import Config, Logging, ModelSpec
from herder.serve.keys import make as make_key
from herder.serve.lifecycle import make_server
from tests.serve.live import Live, live
from tests.serve.models import keyed_server
from tests.web.conftest import Watch
from tests.web.talking import ask, last_answer, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAME = "smollm2"


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Live]:
    model = ModelSpec(NAME, source=str(smollm2), context=512, threads=1)
    config = Config(models=(model,), parallel=1, offline=True, logging=Logging(requests=False))
    with live(config=config, make=make_server) as served:
        yield served


@pytest.fixture
def at_real(browser: Browser, real: Live) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    page = context.new_page()
    page.set_default_timeout(30_000)
    watch = Watch(page)
    page.goto(real.url)
    expect(page.get_by_role("combobox", name="Model")).to_have_value(NAME)
    yield page
    watch.check(real.url)
    context.close()


def configure(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Close settings").click()


def test_it_answers(at_real: Page) -> None:
    configure(at_real, Temperature="0", Most_tokens="40", System_prompt="You are a helpful assistant.")
    ask(at_real, "What is Paris the capital of?")
    expect(last_answer(at_real)).to_contain_text("Paris is the capital of France")
    expect(last_answer(at_real)).to_contain_text("tokens/s")
    expect(at_real.get_by_role("meter", name="Context")).to_have_attribute("aria-valuemax", "512")


def test_stop_frees_the_engine(at_real: Page, real: Live) -> None:
    configure(at_real, Temperature="0", Most_tokens="450", Stop_at="never written")
    ask(at_real, "Write a long story about a llama.", wait=False)
    expect(last_answer(at_real).locator("p").first).to_contain_text(" ")
    at_real.get_by_role("button", name="Stop").click()
    expect(last_answer(at_real)).to_contain_text("stopped")
    llm = real.server.models.find(NAME).llm
    assert llm is not None
    for _ in range(40):  # two seconds; the whole answer would take longer
        if llm.engine.stats().running == 0:
            break
        at_real.wait_for_timeout(50)
    assert llm.engine.stats().running == 0


def test_a_schema_holds(at_real: Page) -> None:
    configure(at_real, JSON_schema='{"enum": ["goat", "llama"]}', Temperature="0")
    ask(at_real, "Name an animal.")
    expect(last_answer(at_real).locator(".prose")).to_have_text(re.compile('^"(goat|llama)"\\s*$'))


def test_a_value_out_of_range_is_the_servers_word(at_real: Page) -> None:
    configure(at_real, JSON_schema='{"type": "herd"}')
    ask(at_real, "hello")
    expect(at_real.get_by_role("alert")).to_contain_text("The server refused the request")
    expect(at_real.get_by_role("alert")).to_contain_text("herd")


def test_a_full_window(at_real: Page) -> None:
    configure(at_real, Most_tokens="16")
    ask(at_real, "llama " * 100)
    ask(at_real, "alpaca " * 100)
    alert = at_real.get_by_role("alert")
    expect(alert).to_contain_text("longer than the model can read")
    alert.get_by_role("button", name="Answer without the oldest part").click()
    expect(last_answer(at_real)).to_contain_text(re.compile(r"without the oldest \d+ tokens"))


def test_a_server_with_keys(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.db"
    connection = keys_store.connect(keys, create=True)
    made = make_key("page")
    keys_store.add(connection, made.key)
    connection.close()

    with live(config=Config(keys=str(keys)), make=keyed_server) as served:
        context = browser.new_context()
        page = context.new_page()
        watch = Watch(page)
        page.goto(served.url)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Key", exact=True).fill(made.text)
        dialog.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("combobox", name="Model")).to_have_value("tiny")
        configure(page, Most_tokens="4")
        ask(page, "hello")
        expect(last_answer(page)).to_contain_text("cut at the limit")
        watch.check(served.url)
        context.close()


def test_the_description_shows_every_route(at_real: Page, real: Live) -> None:
    at_real.goto(real.url + "/docs")
    expect(at_real.get_by_role("heading", name="OpenAI chat")).to_be_visible()
    document = at_real.request.get(real.url + "/openapi.json").json()
    count = sum(len(methods) for methods in document["paths"].values())
    expect(at_real.locator("details")).to_have_count(count)
    assert violations(at_real) == []
    at_real.locator("summary", has_text="/v1/chat/completions").click()
    expect(at_real.get_by_role("cell", name="temperature", exact=True).first).to_be_visible()
