"""What the tests of the page do again and again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def ask(page: Page, text: str, wait: bool = True) -> None:
    """Writes a message and sends it with Enter; wait: until its answer has ended."""
    field = page.get_by_role("textbox", name="Message", exact=True)
    field.fill(text)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    before = page.get_by_role("article", name="Answer").count()
    field.press("Enter")
    if wait:
        expect(page.get_by_role("article", name="Answer")).to_have_count(before + 1)
        expect(page.get_by_role("button", name="Send")).to_be_visible()


def last_answer(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer").last


def violations(page: Page) -> list[str]:
    """What axe-core finds against WCAG 2.2 AA and its own good practice."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]
