"""When things are not as they should be: no key, a busy server, a full window, a server that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install -r constraints/test.txt")
from playwright.sync_api import expect

from tests.web.double import Double
from tests.web.talking import ask, last_answer

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_key_is_asked_for_and_used(page: Page, server: Double) -> None:
    server.key = "sk-right"
    page.reload()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("that is not a key of this server")
    dialog.get_by_label("Key", exact=True).fill("sk-wrong")
    dialog.get_by_role("button", name="Use key").click()
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key", exact=True).fill("sk-right")
    dialog.get_by_role("button", name="Use key").click()
    expect(dialog).to_be_hidden()
    ask(page, "hello")
    expect(last_answer(page)).to_contain_text("You said")
    page.reload()
    expect(page.get_by_role("combobox", name="Model")).to_be_visible()
    assert page.evaluate("localStorage.getItem('herder.key')") is None, "kept for the tab only, unless asked"
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Forget the API key").click()
    expect(dialog).to_be_visible()


def test_a_busy_server_says_when(page: Page, server: Double) -> None:
    server.refusals.append((429, {"retry-after": "1"}, {"message": "too many requests a minute"}))
    ask(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server is busy")
    expect(alert).to_contain_text("too many requests a minute")
    expect(alert.get_by_role("button", name="Try again in")).to_be_disabled()
    alert.get_by_role("button", name="Try again", exact=True).click()
    expect(last_answer(page)).to_contain_text("You said 'hello'")


def test_a_full_window_has_ways_on(page: Page, server: Double) -> None:
    message = "the prompt has 5000 tokens, the model reads 4096"
    server.refusals.append((400, {}, {"message": message, "code": "context_length_exceeded"}))
    ask(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("longer than the model can read")
    expect(alert).to_contain_text(message)
    alert.get_by_role("button", name="Answer without the oldest part").click()
    expect(last_answer(page)).to_contain_text("You said 'hello'")
    assert server.bodies[-1]["truncate_prompt_tokens"] == -1


def test_a_nearly_full_window_is_told(page: Page) -> None:
    ask(page, "a long one")
    expect(page.get_by_text("3,850 of 4,096 tokens: nearly full")).to_be_visible()


def test_a_refused_field_is_named(page: Page, server: Double) -> None:
    server.refusals.append((400, {}, {"message": "temperature is 200.0: must be between 0 and 100"}))
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("temperature is 200.0: must be between 0 and 100")


def test_an_answer_that_breaks_off_is_kept_and_told(page: Page) -> None:
    ask(page, "break now")
    expect(last_answer(page)).to_contain_text("half an")
    expect(page.get_by_role("alert")).to_contain_text("The answer broke off")


def test_a_server_that_is_gone_and_back(page: Page, server: Double) -> None:
    page.context.set_offline(True)
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("The server is not there")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(last_answer(page)).to_contain_text("You said 'hello'")


def test_a_page_that_opens_without_its_server(page: Page, server: Double) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server is not there")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("combobox", name="Model")).to_be_visible()


def test_a_server_without_a_model_says_how_to_get_one(page: Page, server: Double) -> None:
    server.models = []
    page.reload()
    expect(page.get_by_role("heading", name="No model to talk to")).to_be_visible()
    expect(page.get_by_text("herder serve smollm2")).to_be_visible()


def test_a_model_that_went_away_is_named(page: Page, server: Double) -> None:
    ask(page, "hello")
    server.models = ["herdling-large"]
    page.reload()
    expect(page.get_by_role("combobox", name="Model").locator("option:checked")).to_have_text(
        "herdling (not on this server)"
    )
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
