"""Everybody can use it: dark and light, on a phone, by keyboard alone, with a screen reader, without motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install -r constraints/test.txt")
from playwright.sync_api import expect

from tests.web.double import Double
from tests.web.talking import ask, last_answer, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page

BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"
WIDE = "document.documentElement.scrollWidth > innerWidth"


def test_colours_follow_the_system_until_told_otherwise(page: Page) -> None:
    light = page.evaluate(BACKGROUND)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(BACKGROUND)
    assert light != dark
    page.get_by_role("button", name="Colours: system").click()
    assert page.evaluate(BACKGROUND) == light
    page.get_by_role("button", name="Colours: light").click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate(BACKGROUND) == dark
    page.reload()
    expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
    assert page.evaluate(BACKGROUND) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_accessibility_rule_is_broken(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == []
    ask(page, "think about a herd")
    ask(page, "call a tool")
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_role("complementary", name="Settings")).to_be_visible()
    assert violations(page) == []


def test_no_accessibility_rule_is_broken_by_errors_and_dialogs(page: Page, server: Double) -> None:
    server.refusals.append((429, {}, {"message": "too many requests a minute"}))
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []
    server.key = "sk-right"
    page.reload()
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    assert violations(page) == []


def test_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 680})
    page.reload()
    expect(page.get_by_role("navigation")).to_have_count(0)
    ask(page, "a herd")
    assert not page.evaluate(WIDE)
    page.get_by_role("button", name="Show conversations").click()
    expect(page.get_by_role("navigation")).to_be_visible()
    assert page.evaluate("document.querySelector('main').inert")
    page.get_by_role("button", name="Back to the conversation").click(position={"x": 350, "y": 300})
    expect(page.get_by_role("navigation")).to_have_count(0)
    page.get_by_role("button", name="Show conversations").click()
    page.get_by_role("button", name="a herd", exact=True).click()
    expect(page.get_by_role("navigation")).to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    assert not page.evaluate(WIDE)
    page.get_by_role("button", name="Close settings").click()
    assert violations(page) == []


def test_keyboard_alone(page: Page, server: Double) -> None:
    message = page.get_by_role("textbox", name="Message", exact=True)
    expect(message).to_be_focused()
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("endless")
    page.keyboard.press("Enter")
    expect(last_answer(page)).to_contain_text("word2")
    assert server.bodies[0]["messages"][0]["content"] == "one line\nendless"
    page.keyboard.press("Escape")
    expect(last_answer(page)).to_contain_text("stopped")
    page.keyboard.press("ArrowUp")
    editor = page.get_by_role("textbox", name="Edit the message")
    expect(editor).to_be_focused()
    page.keyboard.press("Escape")
    expect(message).to_be_focused()
    page.keyboard.press("Shift+Tab")  # Add pictures
    page.keyboard.press("Shift+Tab")
    expect(last_answer(page).get_by_role("button", name="Answer again")).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    expect(message).to_be_focused()


def test_the_skip_link_comes_first(page: Page) -> None:
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message field")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()


def test_a_screen_reader_hears_the_answer_once(page: Page) -> None:
    ask(page, "hello")
    heard = page.get_by_role("status").filter(has_text="Answer finished. You said 'hello'")
    expect(heard).to_have_count(1)
    assert page.locator("main [aria-live]").count() == 0, "the growing answer would be read again and again"


def test_no_motion_where_none_is_wanted(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    ask(page, "endless", wait=False)
    expect(last_answer(page)).to_contain_text("word2")
    assert page.evaluate("document.getAnimations().length") == 0
    page.keyboard.press("Escape")


def test_the_view_follows_until_the_reader_scrolls(page: Page) -> None:
    page.set_viewport_size({"width": 800, "height": 420})
    ask(page, "herd")
    ask(page, "herd again")
    place = "(() => { const talk = document.querySelector('.talk');"
    at_end = place + " return talk.scrollHeight - talk.scrollTop - talk.clientHeight < 2; })()"
    page.wait_for_function(at_end)
    page.mouse.move(600, 200)
    page.mouse.wheel(0, -300)
    page.get_by_role("button", name="Go to the end").click()
    page.wait_for_function(at_end)
