"""Field tables: what is kept, refused and dropped."""

from __future__ import annotations

import pytest

from herder.serve.fields import FieldError, Table, checked, refused, supported, translated

TABLE = Table(
    "POST /x",
    "nobody",
    (
        supported("stop"),
        supported("options"),
        supported("options.size"),
        refused("options.shape", "there is one shape", "round"),
        supported("tools[].type"),
        refused("store", "nothing is stored", False),
        refused("modes", "text only", ["text"]),
    ),
    (translated("label", "kept nowhere"),),
)


def test_fields_that_are_honoured_are_kept() -> None:
    assert checked({"stop": 1, "label": 2}, TABLE) == {"stop": 1, "label": 2}


@pytest.mark.parametrize("value", [None, False])
def test_values_that_ask_for_nothing_are_taken(value: object) -> None:
    assert checked({"store": value}, TABLE) == {}


@pytest.mark.parametrize("value", [True, 0, "false", []])
def test_other_values_of_a_refused_field_are_errors(value: object) -> None:
    with pytest.raises(FieldError, match="store is not supported: nothing is stored") as caught:
        checked({"store": value}, TABLE)
    assert caught.value.field == "store"


def test_neutral_lists() -> None:
    assert checked({"modes": ["text"]}, TABLE) == {}
    with pytest.raises(FieldError, match="modes"):
        checked({"modes": ["text", "audio"]}, TABLE)


@pytest.mark.parametrize("name", ["unknown", "options.size", "tools[].type", "size", ""])
def test_unknown_fields_are_errors(name: str) -> None:
    with pytest.raises(FieldError, match="is not a field of this API"):
        checked({name: 1}, TABLE)


def test_fields_of_an_inner_object() -> None:
    assert checked({"size": 3, "shape": "round"}, TABLE, None, "options.") == {"size": 3}
    assert checked({"type": "x"}, TABLE, None, "tools[12].") == {"type": "x"}
    with pytest.raises(FieldError, match=r"tools\[12\]\.size") as caught:
        checked({"size": 3}, TABLE, None, "tools[12].")
    assert caught.value.field == "tools[12].size"


def test_a_lenient_server_drops_and_says_so() -> None:
    dropped: list[str] = []
    assert checked({"stop": 1, "store": True, "other": 2}, TABLE, dropped) == {"stop": 1}
    assert dropped == ["store", "other"]


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "\ud800", "x" * 5000, "\u00e9"])
def test_names_that_a_stranger_chose_fit_in_a_header(name: str) -> None:
    dropped: list[str] = []
    checked({name: 1}, TABLE, dropped)
    [shown] = dropped
    assert shown.isascii() and shown.isprintable() and len(shown) <= 64
    with pytest.raises(FieldError) as caught:
        checked({name: 1}, TABLE)
    assert "\n" not in str(caught.value) and str(caught.value).isascii()


def test_a_plain_list_of_fields_does_as_well() -> None:
    assert checked({"stop": 1}, TABLE.fields) == {"stop": 1}
