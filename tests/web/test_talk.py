"""Talking: the stream, stop, another answer, an edited message, copies, pictures, tools, reasoning."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install -r constraints/test.txt")
from playwright.sync_api import expect

from tests.web.double import CODE, Double
from tests.web.talking import PIXEL, ask, last_answer

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_an_answer_comes_as_markdown(page: Page, server: Double) -> None:
    ask(page, "Tell me about a herd")
    answer = last_answer(page)
    expect(answer.locator("strong")).to_have_text("herd")
    expect(answer.get_by_role("listitem")).to_have_count(2)
    expect(answer.get_by_role("cell", name="llama")).to_be_visible()
    expect(answer.locator(".hljs-keyword").first).to_have_text("def")
    expect(answer).to_contain_text("<b>around</b>")  # a model's HTML is text
    assert answer.locator("b, img, script").count() == 0
    assert answer.get_by_role("link", name="a picture").get_attribute("rel") == "noopener noreferrer"
    assert answer.get_by_text("no link").get_attribute("href") is None
    sent = server.bodies[-1]
    assert sent["model"] == "herdling"
    assert sent["messages"] == [{"role": "user", "content": "Tell me about a herd"}]
    assert sent["stream"] is True and sent["stream_options"] == {"include_usage": True}
    assert set(sent) == {"model", "messages", "stream", "stream_options"}, "nothing is sent that nobody set"
    expect(page.get_by_role("meter", name="Context")).to_have_attribute("aria-valuetext", "150 of 4,096 tokens")
    expect(answer).to_contain_text(re.compile(r"\d tokens/s"))


def test_stop_frees_the_server_and_keeps_what_came(page: Page, server: Double) -> None:
    ask(page, "endless please", wait=False)
    expect(last_answer(page)).to_contain_text("word3")
    expect(last_answer(page)).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    expect(last_answer(page)).to_contain_text("stopped")
    assert server.left.wait(5)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "and now")
    said = server.bodies[-1]["messages"]
    assert [one["role"] for one in said] == ["user", "assistant", "user"]
    assert said[1]["content"].startswith("word0 word1 ")


def test_another_answer_is_a_branch(page: Page, server: Double) -> None:
    ask(page, "hello")
    expect(last_answer(page)).to_contain_text("number 1")
    last_answer(page).get_by_role("button", name="Answer again").click()
    expect(last_answer(page)).to_contain_text("number 2")
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]
    expect(last_answer(page)).to_contain_text("2/2")
    last_answer(page).get_by_role("button", name="Previous answer").click()
    expect(last_answer(page)).to_contain_text("number 1")
    ask(page, "go on")
    assert "number 1" in server.bodies[-1]["messages"][1]["content"]


def test_an_edited_message_is_a_branch(page: Page, server: Double) -> None:
    ask(page, "first")
    ask(page, "second")
    page.get_by_role("article", name="You").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    field = page.get_by_role("textbox", name="Edit the message")
    expect(field).to_be_focused()
    field.fill("changed")
    field.press("Enter")
    expect(last_answer(page)).to_contain_text("'changed', number 3")
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "changed"}]
    question = page.get_by_role("article", name="You")
    expect(question).to_have_count(1)
    question.get_by_role("button", name="Previous message").click()
    expect(question).to_have_count(2)
    expect(last_answer(page)).to_contain_text("number 2")


def test_copies(page: Page) -> None:
    ask(page, "herd")
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copy code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == CODE
    last_answer(page).get_by_role("button", name="Copy", exact=True).click()
    expect(last_answer(page).get_by_role("button", name="Copied")).to_be_visible()
    assert "| llama | 4 |" in page.evaluate("navigator.clipboard.readText()")


def test_pictures_are_dropped_and_pasted(page: Page, server: Double) -> None:
    give = """([kind, target, data]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
        transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
        const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
        document.querySelector(target).dispatchEvent(event);
    }"""
    data = base64.b64encode(PIXEL).decode()
    page.evaluate(give, ["drop", "main", data])
    expect(page.get_by_role("img", name="Picture 1 to send")).to_be_visible()
    page.evaluate(give, ["paste", "#message", data])
    page.get_by_role("button", name="Remove picture 2").click()
    expect(page.get_by_role("img", name="Picture 2 to send")).to_have_count(0)
    ask(page, "what is it")
    expect(page.get_by_role("article", name="You").get_by_role("img")).to_have_count(1)
    assert server.bodies[-1]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "what is it"},
    ]


def test_a_model_without_eyes_is_offered_no_pictures(page: Page, server: Double) -> None:
    server.images = False
    page.reload()
    expect(page.get_by_role("combobox", name="Model")).to_be_visible()
    expect(page.get_by_role("combobox", name="Model")).to_have_value("herdling")
    expect(page.get_by_role("button", name="Add pictures")).to_have_count(0)


def test_calls_of_tools_are_shown_and_answered(page: Page, server: Double) -> None:
    ask(page, "call a tool")
    call = page.get_by_role("region", name="Call of weather")
    expect(call).to_contain_text('"city": "Cusco"')
    call.get_by_role("textbox", name="Result of weather").fill("sunny")
    call.get_by_role("button", name="Give").click()
    expect(last_answer(page)).to_contain_text("You said 'sunny'")
    assert server.bodies[-1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Cusco"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]


def test_reasoning_is_folded_away(page: Page) -> None:
    ask(page, "think about it")
    thoughts = last_answer(page).get_by_role("group")
    expect(thoughts).to_contain_text("Thoughts")
    expect(page.get_by_text("First I think.")).to_be_hidden()
    thoughts.get_by_text("Thoughts").click()
    expect(page.get_by_text("First I think.")).to_be_visible()


def test_settings_are_sent_and_kept(page: Page, server: Double) -> None:
    page.get_by_role("button", name="Settings").click()
    panel = page.get_by_role("complementary", name="Settings")
    panel.get_by_label("System prompt").fill("Be brief.")
    for label, value in (
        ("Temperature", "0.33"),
        ("Top-k", "40"),
        ("Min-p", "0.05"),
        ("Seed", "7"),
        ("Most tokens", "64"),
    ):
        panel.get_by_label(re.compile(label)).fill(value)
    panel.get_by_label(re.compile("Top-p")).fill("3")  # not taken
    expect(panel.get_by_text("between 0.01 and 1")).to_be_visible()
    panel.get_by_label(re.compile("Stop at")).fill("END\n###")
    panel.get_by_label(re.compile("JSON schema")).fill('{"type": "object"')
    expect(panel.get_by_text("Not JSON yet")).to_be_visible()
    panel.get_by_label(re.compile("JSON schema")).fill('{"type": "object"}')
    ask(page, "hello")
    sent = server.bodies[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    expected = {"temperature": 0.33, "top_k": 40, "min_p": 0.05, "seed": 7, "max_tokens": 64, "stop": ["END", "###"]}
    assert {name: sent[name] for name in expected} == expected and sent["response_format"] == schema
    assert "top_p" not in sent
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(panel.get_by_label(re.compile("Temperature"))).to_have_value("0.33")
