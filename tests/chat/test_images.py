"""Images in messages: what is read, what is refused by name, and where Llama 3.2 Vision's prompt has them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat import images
from herder.chat.chatml import ChatMLFormat
from herder.chat.llama3 import IMAGE_ROW, Llama3Format
from herder.chat.message import ImageLink, ImagePart, Message, read_message, read_messages, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer

PNG = b"\x89PNG\r\n\x1a\n and so on"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def shown(part: dict[str, Any], **options: Any) -> ImagePart:
    message = read_message(user(part, {"type": "text", "text": "What?"}), **options)
    assert message.text == "What?"
    return message.images[0]


# Reading -------------------------------------------------------------------------------------------------------------
def test_the_ways_to_give_an_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    for value in (PNG, bytearray(PNG), memoryview(PNG), URL, str(file), file):
        assert shown({"type": "image", "image": value}).data == PNG
    for value in (URL, {"url": URL}, {"url": URL, "detail": "auto"}, {"url": URL, "detail": "high"}):
        assert shown({"type": "image_url", "image_url": value}).data == PNG
    assert shown({"type": "image_url", "image_url": URL.replace("png;", "png;name=a.png;")}).data == PNG
    assert shown({"type": "image", "image": URL}, files=False).data == PNG


def test_pillows_images_lose_nothing() -> None:
    from PIL import Image

    picture = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    data = shown({"type": "image", "image": picture}).data
    with Image.open(io.BytesIO(data)) as read:
        assert (read.format, read.mode, read.tobytes()) == ("PNG", "RGBA", picture.tobytes())


def test_links_are_for_whoever_fetches_them() -> None:
    url = "HTTPS://example.org/a.png"
    [link] = read_message(user({"type": "image_url", "image_url": {"url": url}}), "m", links=True).images
    assert isinstance(link, ImageLink) and (link.url, link.where, link.data) == (url, "m.content[0].image_url", b"")
    [image] = read_message(user({"type": "image_url", "image_url": URL}), links=True).images
    assert image.data == PNG and not isinstance(image, ImageLink)
    for other in ("ftp://example.org/a.png", "file:///etc/passwd"):
        with pytest.raises(UsageError, match="URL to fetch"):
            read_message(user({"type": "image_url", "image_url": other}), links=True)


def test_as_templates_expect_them() -> None:
    message = read_message(user({"type": "image", "image": PNG}, {"type": "text", "text": "What?"}))
    assert message.as_json()["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": "https://example.org/a.png"}, "is a URL to fetch (https): send the image"),
        ({"type": "image", "image": "HTTP://example.org/a.png"}, "is a URL to fetch (HTTP): send the image"),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, "is a URL to fetch (file)"),
        ({"type": "image_url", "image_url": "data:text/plain;base64,YQ=="}, "is of type text/plain: expected an image"),
        ({"type": "image_url", "image_url": "data:image/png,a"}, "is no data URL with base64"),
        ({"type": "image_url", "image_url": "data:image/png;base64,!"}, "is damaged: its base64 does not decode"),
        ({"type": "image_url", "image_url": "data:image/png;base64,"}, "is empty: expected an image file"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, "image_url.detail is 'low'"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": 3}}, "image_url.detail is 3: expected auto or high"),
        ({"type": "image_url", "image_url": {"url": URL, "x": 3}}, "image_url has 'x', which is not known"),
        ({"type": "image_url", "image_url": {}}, "image_url lacks url"),
        ({"type": "image_url", "image_url": None}, "image_url is null: expected an object"),
        ({"type": "image_url"}, "messages[0].content[0] lacks image_url"),
        ({"type": "image"}, "messages[0].content[0] lacks image"),
        ({"type": "image", "image": "/no/such/file.png"}, "cannot read '/no/such/file.png': No such file"),
        ({"type": "image", "image": "a\0b"}, "not a path"),
        ({"type": "image", "image": b""}, "is empty"),
        ({"type": "image", "image": 3}, "image is int: expected bytes, a path, a data URL or a Pillow image"),
        ({"type": "image", "image": PNG, "detail": "high"}, "has 'detail', which is not known"),
    ],
)
def test_refusals(part: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as found:
        read_messages([user(part)])
    assert message in str(found.value) and "\n" not in str(found.value)


def test_strangers_name_no_paths(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    for value in (str(file), file):
        with pytest.raises(UsageError, match="is a path: send the image itself"):
            read_messages([user({"type": "image", "image": value})], files=False)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(images, "MAX_BYTES", 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    for value in (PNG, URL, file):
        with pytest.raises(UsageError, match="is larger than 10"):
            shown({"type": "image", "image": value})
    with pytest.raises(UsageError, match="has 4 x 4 pixels: at most 10"):
        shown({"type": "image", "image": Image.new("L", (4, 4))})
    with pytest.raises(UsageError, match="cannot be written as PNG"):
        shown({"type": "image", "image": Image.new("CMYK", (1, 1))})


@given(text=st.one_of(st.text(max_size=30), st.text(max_size=10).map(lambda s: "data:image/png;base64," + s)))
def test_any_url_is_an_image_or_one_line_of_error(text: str) -> None:
    try:
        read_messages([user({"type": "image_url", "image_url": text})])
    except UsageError as error:
        assert "\n" not in str(error)


# Llama 3.2 Vision ----------------------------------------------------------------------------------------------------
IMAGE = ImagePart(PNG)


def meta_ids(parts: list[str | ImagePart]) -> list[int]:
    from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    content = [
        RawTextItem(text=part) if isinstance(part, str) else RawMediaItem(data=picture.getvalue()) for part in parts
    ]
    message = RawMessage(role="user", content=content)
    return list(ChatFormat(MetaTokenizer.get_instance()).encode_dialog_prompt([message]).tokens)


@pytest.mark.parametrize(
    "parts", [[IMAGE, "What?"], [IMAGE, IMAGE, "Which?"], [IMAGE, "This", IMAGE, "or that?"], ["See", IMAGE, "this?"]]
)
def test_meta_encodes_the_same(llama3: Tokenizer, parts: list[str | ImagePart]) -> None:
    prompt = Llama3Format(llama3).render([Message("user", "", parts=tuple(parts))])
    assert prompt.encode(llama3) == meta_ids(parts)
    assert prompt.images == (IMAGE,) * parts.count(IMAGE)
    assert prompt.encode(llama3).count(IMAGE_ROW) == parts.count(IMAGE)


def test_images_that_no_text_would_see_go_first(llama3: Tokenizer) -> None:
    """OpenAI's clients put them behind the text; Meta's documentation wants them before."""
    chat = Llama3Format(llama3)
    behind = chat.render([Message("user", "", parts=("What?", "Now.", IMAGE, IMAGE))])
    assert "\n\n<|image|><|image|>What?Now.<|eot_id|>" in behind.text


def test_where_images_have_no_place(llama3: Tokenizer, smollm: Tokenizer) -> None:
    chat = Llama3Format(llama3)
    message = Message("user", "", parts=(IMAGE, "What?"))
    tools = read_tools([{"function": {"name": "f"}}])
    with pytest.raises(UsageError, match="calls no tools where there are images"):
        chat.render([message], tools=tools)
    with pytest.raises(UsageError, match="its role is system: only users show images"):
        chat.render([Message("system", "", parts=(IMAGE,))])
    with pytest.raises(UsageError, match=r"messages\[0\] has an image: the chat format chatml has no images"):
        ChatMLFormat(smollm, None).render([message])
    with pytest.raises(UsageError, match="the messages have 1 images, but the model's chat template has places for 0"):
        JinjaFormat(llama3, "{{ messages[0].role }}").render([message])


def test_templates_place_images(llama3: Tokenizer, llama4: Tokenizer) -> None:
    """A template writes one token an image, which for Llama 4 stands for all of its tiles'."""
    source = "{% for part in messages[0].content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}"
    forged = Message("user", "", parts=("<|image|>", IMAGE, "b"))
    prompt = JinjaFormat(llama3, source).render([forged])
    assert prompt.encode(llama3) == [*llama3.encode("<|image|>"), IMAGE_ROW, *llama3.encode("b")]
    cut = Message("user", "", parts=("a", ImagePart(PNG, (1, 2), 1), "b"))
    assert JinjaFormat(llama4, source).render([cut]).text == (
        "a<|image_start|><|patch|><|tile_x_separator|><|patch|><|tile_y_separator|><|image|><|patch|><|image_end|>b"
    )
