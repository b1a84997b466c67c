"""The names of models: short ones, and the grammar of hub names."""

from __future__ import annotations

import pytest

from herder.core.errors import UsageError
from herder.weights import registry
from herder.weights.registry import HubName, parse_hub_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/name:Q4_K_M", HubName("org/name", file="Q4_K_M")),
        ("org/name@v1:Q4_K_M", HubName("org/name", "v1", "Q4_K_M")),
        ("org/name:Q4_K_M@v1", HubName("org/name", "v1", "Q4_K_M")),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("org/name:sub/file.gguf", HubName("org/name", file="sub/file.gguf")),
        ("https://huggingface.co/org/name/", HubName("org/name")),
        ("https://huggingface.co/org/name/tree/v1", HubName("org/name", "v1")),
        ("hf.co/org/name:Q8_0", HubName("org/name", file="Q8_0")),
        ("name", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("-a/b", None),
        ("a/..", None),
        ("a b/c", None),
    ],
)
def test_hub_names(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected
    if expected is not None:
        assert parse_hub_name(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["org/name@", "org/name:", "org/name@../../x", "org/name:/etc/passwd", "org/name:a\\b"]
)
def test_hub_names_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_hub_name(text)


def test_the_registry_is_well_formed() -> None:
    for name, entry in registry.MODELS.items():
        assert "/" not in name and name == name.lower()
        if isinstance(entry.source, HubName):
            assert parse_hub_name(str(entry.source)) == entry.source
        else:
            assert len(entry.source.sha256) == 64
    assert registry.DEFAULT in registry.MODELS
