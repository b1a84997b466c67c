"""The restricted unpickler: what torch.save writes becomes descriptions of tensors, all else is refused by name."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.core.errors import HerderError, ModelFileError
from herder.weights import unpickler
from herder.weights.unpickler import StorageInfo, TensorInfo, unpickle
from tests.weights.meta_files import number, numbers, state, storage, tensor, text

GOOD = state(
    {"a": tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1)), "b": tensor("HalfStorage", "1", 8, 2, (3,), (2,))}
)


def opened(body: bytes) -> Any:
    return unpickle(b"\x80\x02" + body + b".", "file")


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        unpickle(data, "file")
    assert "\n" not in str(caught.value)


def test_a_state_dict_becomes_descriptions() -> None:
    assert unpickle(GOOD, "file") == {
        "a": TensorInfo(StorageInfo("0", "F32", 6), "F32", 0, (2, 3), (3, 1)),
        "b": TensorInfo(StorageInfo("1", "F16", 8), "F16", 2, (3,), (2,)),
    }


PLAIN: list[Any] = [
    {}, [], (), None, True, False, 0, 255, 65535, -(1 << 31), 1 << 40, -(1 << 40), 1.5, "x", "ä" * 300, b"", b"x" * 300,
    {"a": [1, (2, 3), {"b": None}], "c": {"d": (1, 2, 3, 4)}}, [[1], [2, 3]], ((1,), (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    assert unpickle(pickle.dumps(value, protocol), "file") == value


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
))  # fmt: skip
def test_any_plain_value_is_that_of_pickle(value: Any) -> None:
    assert unpickle(pickle.dumps(value, 4), "file") == value


def test_buffers_and_the_attributes_of_a_state_dict_are_dropped() -> None:
    ordered = collections.OrderedDict(a=1)
    ordered._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    for protocol in (2, 3, 4, 5):
        found = unpickle(pickle.dumps([ordered, io.BytesIO(b"\0\xff")], protocol), "file")
        assert found[0] == {"a": 1}
        assert type(found[1]) is unpickler.Opaque


# Code in a pickle


class Runs:
    """Whose pickle calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    pass


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("function", "named"), [
    (__import__("os").system, r"(posix|nt)\.system"),
    (eval, r"(builtins|__builtin__)\.eval"),
    (exec, r"(builtins|__builtin__)\.exec"),
    (getattr, r"(builtins|__builtin__)\.getattr"),
    (__import__("subprocess").Popen, r"(subprocess|commands)\.Popen"),
    (__import__("shutil").rmtree, r"shutil\.rmtree"),
], ids=["system", "eval", "exec", "getattr", "Popen", "rmtree"])  # fmt: skip
def test_a_call_is_refused_by_its_name(tmp_path: Path, function: Any, named: str, protocol: int) -> None:
    witness = tmp_path / "ran"
    data = pickle.dumps({"a": Runs(function, f"open({str(witness)!r}, 'w')")}, protocol)
    refused(data, f"asks for {named}, which the description of tensors does not need and which could run code")
    assert not witness.exists()


def test_instances_of_classes_are_refused() -> None:
    for protocol in (2, 4):
        refused(pickle.dumps(Plain(), protocol), r"asks for .*test_unpickler\.Plain")


@pytest.mark.parametrize(("body", "message"), [
    (b"(iposix\nsystem\n", "uses pickle's INST"),
    (b"(cposix\nsystem\n" + text("id") + b"o", r"asks for posix\.system"),
    (b"(ctorch\nFloatStorage\n" + text("id") + b"o", "uses pickle's OBJ"),
    (b"ctorch\nFloatStorage\n)\x81", "uses pickle's NEWOBJ"),
    (b"ccollections\nOrderedDict\n)}\x92", "uses pickle's NEWOBJ_EX"),
    (b"\x82\x01", "uses pickle's EXT1"), (b"\x83\x01\x00", "uses pickle's EXT2"),
    (b"\x84\x01\x00\x00\x00", "uses pickle's EXT4"), (b"P0\n", "uses pickle's PERSID"),
    (text("os") + text("system") + b"\x93", r"asks for os\.system"),
    (text("collections") + b")\x93", "uses pickle's STACK_GLOBAL without two names"),
    (text("system") + b")R", "calls something that is not a global"),
    (b"ctorch\nFloatStorage\n)R", "calls a torch storage"), (b"ctorch\nfloat16\n)R", "calls a torch dtype"),
    (b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R", "calls _codecs.encode for something else"),
    (b"]}b", "uses pickle's BUILD on a list"),
    (b"}" + b"}" + text("__class__") + b"Nsb", "uses pickle's BUILD on a dict"),
    (b"ctorch\nFloatStorage\n}b", "uses pickle's BUILD on a _Global"),
    (b"ccollections\nOrderedDict\n]" + text("x") + b"a\x85R", "makes an OrderedDict from something else than nothing"),
])  # fmt: skip
def test_ways_round_reduce_are_refused_by_name(body: bytes, message: str) -> None:
    refused(b"\x80\x02" + body + b".", message)


# Lies about tensors

_HOOKS = b"ccollections\nOrderedDict\n)R"
_FLOATS = storage("FloatStorage", "0", 6)


def rebuilt(*arguments: bytes, version: int = 2) -> bytes:
    return f"ctorch._utils\n_rebuild_tensor_v{version}\n(".encode() + b"".join(arguments) + b"tR"


@pytest.mark.parametrize(("body", "message"), [
    (number(1) + b"Q", "persistent id that is not a storage"),
    (b"(" + text("module") + b"NNNNtQ", "persistent id that is not a storage"),
    (b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + number(1) + b"tQ", "is none"),
    (storage("FloatStorage", "0", -1), "class, key, place or size is none"),
    (rebuilt(_FLOATS), "makes a tensor of 1 arguments"),
    (rebuilt(text("0"), number(0), numbers((1,)), numbers((1,)), b"\x89", _HOOKS), "without a storage"),
    (rebuilt(_FLOATS, number(-1), numbers((1,)), numbers((1,)), b"\x89", _HOOKS), "offset, shape or strides are none"),
    (rebuilt(_FLOATS, number(0), numbers((-2,)), numbers((1,)), b"\x89", _HOOKS), "offset, shape or strides are none"),
    (rebuilt(_FLOATS, number(0), numbers((1, 2)), numbers((1,)), b"\x89", _HOOKS), "offset, shape or strides are none"),
    (rebuilt(_FLOATS, number(0), numbers((1,) * 9), numbers((1,) * 9), b"\x89", _HOOKS), "shape or strides are none"),
    (rebuilt(_FLOATS, number(0), numbers(()), numbers(()), b"\x89", b"}" + text("h") + b"Ns"), "hooks or metadata"),
    (rebuilt(_FLOATS, number(0), numbers(()), numbers(()), b"\x89", _HOOKS, text("m")), "hooks or metadata"),
    (rebuilt(_FLOATS, number(0), numbers(()), numbers(()), b"\x89", _HOOKS, text("F32"), version=3), "or a dtype"),
    (b"}" + b")" + b"Ns", "has a key that is a tuple, not a name"),
    (b"}(" + text("a") + b"N" + text("a") + b"Nu", "has the key 'a' twice"),
])  # fmt: skip
def test_lies_about_tensors_are_named(body: bytes, message: str) -> None:
    refused(b"\x80\x02" + body + b".", message)


@pytest.mark.parametrize(("data", "message"), [
    (b"", "ends before its STOP"), (b".", "empty stack"), (b"\x80\x02N", "ends before its STOP"),
    (b"\x80\x02NN.", "values left over"), (b"\x80\x01N.", "protocol 1"), (b"\x80\x02h\x00.", "recalls value 0"),
    (b"\x80\x02q\x00.", "remembers a value that is not there"), (b"\x80\x02t.", "MARK that is not there"),
    (b"\x80\x02X\xff\xff\xff\xffa.", "4294967295 bytes follow where 2 are left"),
    (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"), (b"\x80\x02\x8a\xff.", "an integer of 255 bytes"),
    (b"\x80\x02Nu.", "MARK"), (b"\x80\x02}(Nu.", "a key without a value"), (b"\x80\x02(.", "empty stack"),
    (b"\x80\x02\xfe.", "byte 0xfe"), (b"\x80\x02cos", "name without an end"), (b"\x80\x04\x95" + b"\xff" * 8, "frame"),
])  # fmt: skip
def test_damage_is_named(data: bytes, message: str) -> None:
    refused(data, message)


def test_nesting_that_doubles_costs_nothing() -> None:
    """200 tuples of the one before, twice: 2**200 values if anything walked or hashed them."""
    doubled = b"(NNt" + b"q\x00h\x00\x86" * 200
    assert type(opened(doubled)) is tuple
    refused(b"\x80\x02}" + doubled + b"Ns.", "has a key that is a tuple")
    refused(b"\x80\x02" + rebuilt(_FLOATS, number(0), doubled, doubled, b"\x89", _HOOKS) + b".", "strides are none")


@given(st.integers(0, len(GOOD) - 1))
def test_cut_short_anywhere_it_is_refused(length: int) -> None:
    with pytest.raises(ModelFileError):
        unpickle(GOOD[:length], "file")


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_anywhere_it_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    read_or_refused(bytes(data))


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refused(b"\x80\x02" + data)


def read_or_refused(data: bytes) -> None:
    try:
        unpickle(data, "file")
    except HerderError as error:
        assert str(error).startswith("file ") and "\n" not in str(error)
