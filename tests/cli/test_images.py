"""Images on the command line: herder run --image, and /image in a chat."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM
from tests.images.pictures import file_of, picture


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(file_of(picture(4, 6)))
    return path


def url(photo: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()


def test_a_chat_shows_an_image_with_the_next_message(run: Run, llm: FakeLLM, photo: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = [f"/image {photo}", "What is it?", "And now?", f"/save {saved}", "/regenerate", f"/load {saved}", "More."]
    result = run("chat", "fake", stdin="\n".join(lines))
    assert result.code == 0 and result.err == ""
    assert result.out.startswith("1 image with the next message\nYou said: What is it?\nYou said: And now?\n")
    shown = [{"type": "image_url", "image_url": {"url": url(photo)}}, {"type": "text", "text": "What is it?"}]
    contents = [[one["content"] for one in messages] for messages, _ in llm.asked]
    assert contents[0] == [shown]
    assert contents[1] == contents[2] == [shown, "You said: What is it?", "And now?"]
    assert contents[3][:3] == contents[1] and contents[3][-1] == "More."
    assert json.loads(saved.read_text())["messages"][0]["content"] == shown


def test_an_image_is_taken_back_with_its_message(run: Run, llm: FakeLLM, photo: Path) -> None:
    run("chat", "fake", stdin=f"/image {photo}\nWhat is it?\n/regenerate\nAnd now?")
    contents = [messages[-1]["content"] for messages, _ in llm.asked]
    assert contents[0] == contents[1] and contents[0][0]["type"] == "image_url"
    assert contents[2] == "And now?"


def test_images_are_counted_and_dropped(run: Run, llm: FakeLLM, photo: Path) -> None:
    result = run("chat", "fake", stdin=f"/image {photo}\n/image {photo}\n/image\n/image off\nhello")
    assert result.out.startswith(
        "1 image with the next message\n2 images with the next message\n2 images with the next message\n"
        "0 images with the next message\nYou said: hello\n"
    )
    assert llm.asked[0][0] == [{"role": "user", "content": "hello"}]


def test_what_is_no_image_is_refused_at_once(run: Run, llm: FakeLLM, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("not an image")
    result = run("chat", "fake", stdin=f"/image {note}\n/image {tmp_path / 'none.png'}")
    assert result.code == 2
    first, second = result.err.splitlines()
    assert first.startswith(f"herder: {note} is not in a known image format")
    assert "none.png" in second and "No such file" in second


def test_a_model_that_cannot_see_says_so(run: Run, llm: FakeLLM, photo: Path) -> None:
    llm.sees = False
    result = run("chat", "fake", stdin=f"/image {photo}\nhello")
    assert result.err == "herder: fake takes no images as it is loaded: only vision models do, with --runtime torch\n"
    assert result.out == "You said: hello\n"


def test_a_saved_conversation_with_a_broken_image_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    content = [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]
    path.write_text(json.dumps({"model": "fake", "messages": [{"role": "user", "content": content}]}))
    result = run("chat", "--load", str(path))
    assert result.code == 2 and result.err.startswith(f"herder: {path}: messages[0].content[0]")
    assert len(result.err.splitlines()) == 1


def test_run_shows_images_before_the_prompt(run: Run, llm: FakeLLM, photo: Path) -> None:
    assert run("run", "fake", "What is it?", "--image", str(photo), "--image", str(photo)).code == 0
    [([message], _)] = llm.asked
    image = {"type": "image_url", "image_url": {"url": url(photo)}}
    assert message["content"] == [image, image, {"type": "text", "text": "What is it?"}]
    photo.write_bytes(b"nothing of the kind")
    result = run("run", "fake", "What is it?", "--image", str(photo))
    assert result.code == 2 and "is not in a known image format" in result.err and len(llm.asked) == 1
    assert run("run", "fake", "--raw", "text", "--image", str(photo)).err.startswith(
        "herder: --raw uses no chat format"
    )
