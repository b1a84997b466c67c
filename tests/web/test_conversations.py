"""Conversations in the browser: kept, searched, renamed, deleted, exported and imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install -r constraints/test.txt")
from playwright.sync_api import expect

from herder.cli import conversation as saved
from tests.web.double import Double
from tests.web.talking import ask, last_answer

if TYPE_CHECKING:
    from playwright.sync_api import Page


def new_chat(page: Page) -> None:
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()


def test_they_are_there_after_a_reload(page: Page) -> None:
    ask(page, "a question to keep")
    page.reload()
    expect(last_answer(page)).to_contain_text("You said 'a question to keep'")
    expect(page).to_have_title("a question to keep · Herder")
    new_chat(page)
    page.go_back()
    expect(last_answer(page)).to_contain_text("a question to keep")


def test_an_answer_that_still_came_is_kept_at_a_reload(page: Page) -> None:
    ask(page, "endless", wait=False)
    expect(last_answer(page)).to_contain_text("word80")  # it is kept every second
    page.reload()
    expect(last_answer(page)).to_contain_text("word0 word1 word2")
    expect(last_answer(page)).to_contain_text("stopped")


def test_search_by_keyboard(page: Page) -> None:
    ask(page, "about llamas")
    new_chat(page)
    ask(page, "about goats")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("YOU llamas")
    names = page.get_by_role("navigation").get_by_role("listitem")
    expect(names).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("about llamas")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.get_by_role("searchbox").fill("nobody said this")
    expect(page.get_by_text("Nothing found.")).to_be_visible()


def test_rename_and_delete(page: Page) -> None:
    ask(page, "first name")
    entry = page.get_by_role("navigation").get_by_role("listitem")
    entry.hover()
    page.get_by_role("button", name="Rename first name").click()
    field = page.get_by_role("textbox", name="Name of the conversation")
    expect(field).to_be_focused()
    field.fill("second name")
    field.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("second name")
    ask(page, "more")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("second name")
    entry.hover()
    page.get_by_role("button", name="Delete second name").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    expect(entry).to_have_count(1)
    entry.hover()
    page.get_by_role("button", name="Delete second name").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(entry).to_have_count(0)
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    page.reload()
    expect(page.get_by_text("No conversations yet.")).to_be_visible()


def test_one_is_exported_as_the_command_line_saves_it(page: Page, tmp_path: Path) -> None:
    ask(page, "to the shell")
    page.get_by_role("navigation").get_by_role("listitem").hover()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export to the shell").click()
    assert download.value.suggested_filename == "to the shell.json"
    path = tmp_path / "one.json"
    download.value.save_as(path)
    read = saved.load(path)
    assert read.model == "herdling"
    assert [one["role"] for one in read.messages] == ["user", "assistant"]
    assert read.messages[0]["content"] == "to the shell"


def test_a_file_of_the_command_line_is_imported(page: Page, server: Double, tmp_path: Path) -> None:
    path = tmp_path / "from the shell.json"
    talk = [{"role": "user", "content": "said in a shell"}, {"role": "assistant", "content": "and answered"}]
    saved.Conversation("herdling-large", "Be kind.", talk, {"temperature": 0.25}).save(path)
    page.get_by_label("Files to import").set_input_files(path)
    expect(last_answer(page)).to_contain_text("and answered")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("herdling-large")
    ask(page, "go on")
    sent = server.bodies[-1]
    assert sent["model"] == "herdling-large" and sent["temperature"] == 0.25
    assert [one["content"] for one in sent["messages"]] == ["Be kind.", "said in a shell", "and answered", "go on"]


def test_all_are_exported_and_imported_with_their_branches(page: Page, tmp_path: Path) -> None:
    ask(page, "one")
    last_answer(page).get_by_role("button", name="Answer again").click()
    expect(last_answer(page)).to_contain_text("number 2")
    new_chat(page)
    ask(page, "two")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all conversations").click()
    path = tmp_path / "all.json"
    download.value.save_as(path)
    assert len(json.loads(path.read_text())["conversations"]) == 2
    page.evaluate("indexedDB.deleteDatabase('herder')")
    page.reload()
    expect(page.get_by_text("No conversations yet.")).to_be_visible()
    page.get_by_label("Files to import").set_input_files(path)
    expect(page.get_by_text("2 conversations imported.")).to_be_visible()
    page.get_by_role("button", name="one", exact=True).click()
    expect(last_answer(page)).to_contain_text("2/2")


def test_a_file_that_is_none_is_refused(page: Page, tmp_path: Path) -> None:
    for name, text, says in (
        ("a.json", "{", "a.json is not JSON"),
        ("b.json", "[]", "b.json holds no conversation"),
        ("c.json", '{"messages": [{"role": "cat", "content": ""}]}', "c.json: messages[0]"),
    ):
        path = tmp_path / name
        path.write_text(text)
        page.get_by_label("Files to import").set_input_files(path)
        expect(page.get_by_role("status").filter(has_text=says)).to_be_visible()
    expect(page.get_by_text("No conversations yet.")).to_be_visible()


def test_another_tab_sees_them(page: Page, server: Double) -> None:
    other = page.context.new_page()
    other.goto(server.origin)
    ask(page, "from the first tab")
    expect(other.get_by_role("button", name="from the first tab", exact=True)).to_be_visible()
