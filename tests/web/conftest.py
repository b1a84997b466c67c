"""A real Chromium at a real socket. Every test also asserts that the page stayed at its own server, broke no rule of
its content security policy, and raised no error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.web.double import Double, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # One a module: while Playwright's runs, its thread has an event loop, which other tests must not find there.
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a machine may be slow; what is there is seen at once
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=ARGUMENTS, timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Double]:
    with serve(Double()) as double:
        yield double


@pytest.fixture
def server(running: Double) -> Double:
    running.reset()
    return running


class Watch:
    """What a page has done that it must not."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.expected = ("401", "429", "400", "503", "ERR_CONNECTION_REFUSED", "ERR_FAILED", "DISCONNECTED")
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def check(self, origin: str) -> None:
        allowed = (origin + "/", "data:", "blob:" + origin)
        assert not [url for url in self.requests if not url.startswith(allowed)], "the page went elsewhere"
        # A refused request is an error to the console; that the page shows it is what a test asserts.
        network = "Failed to load resource"
        assert not [e for e in self.errors if not (network in e and any(word in e for word in self.expected))]


@pytest.fixture
def page(browser: Browser, server: Double) -> Iterator[Page]:
    """The chat page, opened, in a browser with nothing stored."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.origin)
    page = context.new_page()
    page.set_default_timeout(10_000)
    watch = Watch(page)
    page.goto(server.origin)
    page.get_by_role("combobox", name="Model").wait_for()
    yield page
    watch.check(server.origin)
    context.close()
