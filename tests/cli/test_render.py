"""herder render: formats by name, and the tokens of an image. What it prints for a real file: test_end_to_end.py."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from herder.cli.render import COMMANDS, render
from herder.core.config import Llama4Vision
from herder.core.errors import HerderError, UnsupportedModel, UsageError
from tests.text.vocabularies import package

VISION = Llama4Vision(
    dim=8, layers=1, heads=1, ffn_dim=8, patch=14, tile=336, projector_dim=8, output_dim=8, max_tiles=16
)


class Files(SimpleNamespace):
    """As much of ModelFiles as a prompt needs: Meta's vocabulary, no template."""

    kind, chat_templates = "meta", {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(model: str, messages: Any, *words: str, vision: Llama4Vision | None = None) -> str:
        folder = package("llama_models") / model
        files = Files(path=folder, name=model, config=SimpleNamespace(vision=vision, name=model))
        monkeypatch.setattr("herder.weights.store.resolve", lambda *_, **__: folder)
        monkeypatch.setattr("herder.weights.source.open_model", lambda _: files)
        path = tmp_path / "messages.json"
        path.write_text(json.dumps(messages))
        assert render(COMMANDS["render"].parse([model, str(path), *words])) == 0
        return capsys.readouterr().out

    return run


def picture(width: int, height: int) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return {"type": "image_url", "image_url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


def test_a_format_by_name(rendered: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert rendered("llama3", messages).startswith("<|begin_of_text|><|start_header_id|>user")
    assert "Task: Check if" in rendered("llama3", messages, "--chat-format", "llama-guard-3")
    dated = rendered("llama3", messages, "--option", "date=1 May 2025")
    assert "Today Date: 1 May 2025" in dated
    with pytest.raises(UsageError, match="there is no chat format 'alpaca'"):
        rendered("llama3", messages, "--chat-format", "alpaca")
    with pytest.raises(UnsupportedModel, match="the vocabulary lacks"):
        rendered("llama3", messages, "--chat-format", "llama4")


def test_the_help_names_every_format() -> None:
    from herder.chat.load import NAMES

    assert all(name in COMMANDS["render"].details for name in NAMES)


def test_an_image_in_tiles(rendered: Any) -> None:
    """Of the patches of a tile the number is said; --json has them all."""
    messages = [{"role": "user", "content": [picture(600, 300), {"type": "text", "text": "What?"}]}]
    text = rendered("llama4", messages, vision=VISION)
    patches = "<|patch|>... (144 in all)"
    assert text.count(patches) == 3 and "<|tile_x_separator|>" in text and text.count("<|image|>") == 1
    ids = json.loads(rendered("llama4", messages, "--json", vision=VISION))
    assert ids.count(200092) == 3 * 144


def test_a_model_without_eyes(rendered: Any) -> None:
    messages = [{"role": "user", "content": [picture(6, 3)]}]
    with pytest.raises(HerderError, match=r"messages\[0\] has an image, but llama4 reads only text"):
        rendered("llama4", messages)
