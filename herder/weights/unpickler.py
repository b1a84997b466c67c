"""A pickle that describes tensors, read without being run: an interpreter of the few opcodes that torch.save writes.

Python's pickle is a small stack machine, and GLOBAL and REDUCE let a file call any function. Here nothing is imported
and nothing is called: a global is a word on a list below, REDUCE makes a dict or a TensorInfo, and everything else,
opcode or global, is refused by its name. Opcodes as in CPython's Lib/pickletools.py; the arguments of the globals as in
PyTorch's torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`, `_rebuild_parameter`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from herder.core.errors import ModelFileError

MAX_DIMENSIONS = 8
_INT64 = 1 << 63

# dtype names are those of safetensors.
_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "CharStorage": "I8", "ByteStorage": "U8", "ShortStorage": "I16", "IntStorage": "I32", "LongStorage": "I64",
    "BoolStorage": "BOOL",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8", "uint8": "U8",
    "int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """Where a tensor's numbers are: a file of the archive. dtype: None when untyped, and then count is in bytes."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """offset and strides are in elements of dtype. Nothing is checked against the storage here."""

    storage: StorageInfo
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """An in-memory file (io.BytesIO), as Transformer Engine leaves beside its weights. What it holds is not read."""


@dataclass(frozen=True, slots=True)
class _Global:
    """A word of the list below; what REDUCE or a persistent id may do with it."""

    kind: str  # dict | tensor2 | tensor3 | parameter | storage | dtype | buffer | encode
    dtype: str | None = None


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global("dict"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor2"),
    ("torch._utils", "_rebuild_tensor_v3"): _Global("tensor3"),
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    ("torch.storage", "UntypedStorage"): _Global("storage"),
    ("_io", "BytesIO"): _Global("buffer"),
    ("_codecs", "encode"): _Global("encode"),
    **{("torch", name): _Global("storage", dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): _Global("dtype", dtype) for name, dtype in _DTYPES.items()},
}

_MARK = object()
_REFUSED = {
    b"i": "INST", b"o": "OBJ", b"\x92": "NEWOBJ_EX", b"\x82": "EXT1", b"\x83": "EXT2", b"\x84": "EXT4", b"P": "PERSID",
    b"\x97": "NEXT_BUFFER", b"\x98": "READONLY_BUFFER",
}  # fmt: skip


def unpickle(data: bytes, where: str) -> Any:
    """The object: dict, list, tuple, str, bytes, int, float, bool, None, TensorInfo and Opaque. It may contain itself.

    where: names the file in errors. Raises ModelFileError for anything that is not tensors and their names.
    """
    return _Machine(data, where).run()


class _Machine:
    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        operations = _OPERATIONS
        data, size = self._data, len(self._data)
        while self._at < size:
            code = data[self._at]
            self._at += 1
            if code == 0x2E:  # STOP
                value = self._pop()
                if self._stack:
                    self._fail("ends with values left over")
                return value
            operation = operations.get(code)
            if operation is None:
                self._unknown(code)
            operation(self)
        self._fail("ends before its STOP")

    # Errors

    def _fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._where} {problem}: the file is damaged, download it again")

    def _refuse(self, what: str) -> NoReturn:
        raise ModelFileError(
            f"{self._where} {what}, which the description of tensors does not need and which could run code: "
            "do not load this file, get it from its publisher"
        )

    def _unknown(self, code: int) -> NoReturn:
        name = _REFUSED.get(bytes([code]))
        if name is not None:
            self._refuse(f"uses pickle's {name}")
        self._fail(f"has byte 0x{code:02x} where a pickle opcode should be, or one that torch.save never writes")

    # Reading

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            self._fail(f"says {count} bytes follow where {len(self._data) - self._at} are left")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 1024)
        if end < 0:
            self._fail("has a name without an end")
        line = self._data[self._at : end]
        self._at = end + 1
        return self._text(line)

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._fail("has a string that is not UTF-8")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self._fail("takes a value from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type, what: str) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            self._fail(f"puts items into what is not {what}")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        self._fail("looks for a MARK that is not there")

    # Operations

    def proto(self) -> None:
        version = self._unsigned(1)
        if not 2 <= version <= 5:
            self._fail(f"is a pickle of protocol {version}, where torch.save writes 2 to 5")

    def frame(self) -> None:
        if self._unsigned(8) > len(self._data) - self._at:
            self._fail("has a frame longer than itself")

    def string(self, size: int) -> None:
        self._stack.append(self._text(self._take(self._unsigned(size))))

    def raw(self, size: int) -> None:
        self._stack.append(self._take(self._unsigned(size)))

    def integer(self, size: int, signed: bool) -> None:
        self._stack.append(int.from_bytes(self._take(size), "little", signed=signed))

    def long1(self) -> None:
        size = self._unsigned(1)
        if size > 9:
            self._fail(f"has an integer of {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def float8(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def put(self, size: int) -> None:
        key = self._unsigned(size)
        self._memo[key] = self._peek()

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._peek()

    def _peek(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self._fail("remembers a value that is not there")
        return self._stack[-1]

    def get(self, size: int) -> None:
        key = self._unsigned(size)
        if key not in self._memo:
            self._fail(f"recalls value {key}, which it never remembered")
        self._stack.append(self._memo[key])

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def tuple_since_mark(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def list_since_mark(self) -> None:
        self._stack.append(self._since_mark())

    def append(self) -> None:
        value = self._pop()
        self._top(list, "a list").append(value)

    def appends(self) -> None:
        items = self._since_mark()
        self._top(list, "a list").extend(items)

    def setitem(self) -> None:
        value = self._pop()
        key = self._pop()
        self._set(self._top(dict, "a dict"), key, value)

    def setitems(self) -> None:
        items = self._since_mark()
        target = self._top(dict, "a dict")
        if len(items) % 2:
            self._fail("has a key without a value")
        for index in range(0, len(items), 2):
            self._set(target, items[index], items[index + 1])

    def dict_since_mark(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._stack.extend([_MARK, *items])
        self.setitems()

    def _set(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        if type(key) is not str and type(key) is not int:  # a hash of nested tuples can take for ever
            self._fail(f"has a key that is a {type(key).__name__}, not a name")
        if key in target:
            self._fail(f"has the key {str(key)[:80]!r} twice")
        target[key] = value

    def pop(self) -> None:
        if not self._stack:
            self._fail("drops a value from an empty stack")
        self._stack.pop()

    def pop_mark(self) -> None:
        self._since_mark()

    def global_(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(module) is not str or type(name) is not str:
            self._refuse("uses pickle's STACK_GLOBAL without two names")
        self._global(module, name)

    def _global(self, module: str, name: str) -> None:
        found = _GLOBALS.get((module, name))
        if found is None:
            self._refuse(f"asks for {module[:80]}.{name[:80]}")
        self._stack.append(found)

    def persistent(self) -> None:
        """A storage: ("storage", class, key, location, count)."""
        value = self._pop()
        if type(value) is not tuple or len(value) != 5 or value[0] != "storage" or type(value[1]) is not _Global:
            self._fail("has a persistent id that is not a storage")
        _, kind, key, location, count = value
        if kind.kind != "storage" or type(key) is not str or type(location) is not str or not _natural(count):
            self._fail("has a storage whose class, key, place or size is none")
        self._stack.append(StorageInfo(key, kind.dtype, count))

    def reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if type(called) is not _Global or type(arguments) is not tuple:
            self._refuse("calls something that is not a global")
        self._stack.append(self._call(called, arguments))

    def newobj(self) -> None:
        arguments, made = self._pop(), self._pop()
        if type(made) is not _Global or made.kind not in ("buffer", "dict") or arguments != ():
            self._refuse("uses pickle's NEWOBJ for something that is neither a dict nor a buffer")
        self._stack.append(Opaque() if made.kind == "buffer" else {})

    def build(self) -> None:
        """Drops a state_dict's attributes (`_metadata`: versions of modules) and a buffer's contents."""
        state = self._pop()
        target = self._peek()
        attributes = type(target) is dict and type(state) is dict and set(state) <= {"_metadata"}
        if not attributes and type(target) is not Opaque:
            self._refuse(f"uses pickle's BUILD on a {type(target).__name__}")

    def _call(self, called: _Global, arguments: tuple[Any, ...]) -> Any:
        kind = called.kind
        if kind in ("tensor2", "tensor3"):
            return self._tensor(kind == "tensor3", arguments)
        if kind == "dict":
            if arguments == () or (len(arguments) == 1 and type(arguments[0]) is list and not arguments[0]):
                return {}
            self._fail("makes an OrderedDict from something else than nothing")
        if kind == "parameter":  # (data, requires_grad, backward_hooks)
            if len(arguments) != 3 or type(arguments[0]) is not TensorInfo or arguments[2] != {}:
                self._fail("has a parameter without a tensor, or with hooks")
            return arguments[0]
        if kind == "encode":  # bytes, as pickles of protocol 2 spell them
            if len(arguments) == 2 and type(arguments[0]) is str and arguments[1] == "latin1":
                return b""
            self._refuse("calls _codecs.encode for something else than bytes")
        if kind == "buffer":
            return Opaque()
        self._refuse(f"calls a torch {kind}")

    def _tensor(self, typed: bool, arguments: tuple[Any, ...]) -> TensorInfo:
        """(storage, offset, shape, strides, requires_grad, hooks[, metadata]); v3 has the dtype after the hooks."""
        least = 7 if typed else 6
        if not least <= len(arguments) <= least + 1:
            self._fail(f"makes a tensor of {len(arguments)} arguments")
        storage, offset, shape, strides, _, hooks, *rest = arguments
        dtype = storage.dtype if type(storage) is StorageInfo else None
        if typed:
            dtype = rest[0].dtype if type(rest[0]) is _Global and rest[0].kind == "dtype" else None
            rest = rest[1:]
        if type(storage) is not StorageInfo or dtype is None:
            self._fail("has a tensor without a storage or a dtype")
        if hooks != {} or (rest and rest[0]):
            self._refuse("has a tensor with hooks or metadata")
        sound = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_DIMENSIONS
        if not sound or not _natural(offset) or not all(map(_natural, shape)) or not all(map(_natural, strides)):
            self._fail("has a tensor whose offset, shape or strides are none")
        return TensorInfo(storage, dtype, offset, shape, strides)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INT64


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.proto, 0x95: _Machine.frame,
    ord("("): lambda m: m._stack.append(_MARK), ord("N"): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True), 0x89: lambda m: m._stack.append(False),
    ord("}"): lambda m: m._stack.append({}), ord("]"): lambda m: m._stack.append([]),
    ord(")"): lambda m: m._stack.append(()),
    ord("X"): lambda m: m.string(4), 0x8C: lambda m: m.string(1), 0x8D: lambda m: m.string(8),
    ord("C"): lambda m: m.raw(1), ord("B"): lambda m: m.raw(4), 0x8E: lambda m: m.raw(8),
    ord("K"): lambda m: m.integer(1, False), ord("M"): lambda m: m.integer(2, False),
    ord("J"): lambda m: m.integer(4, True), 0x8A: _Machine.long1, ord("G"): _Machine.float8,
    ord("q"): lambda m: m.put(1), ord("r"): lambda m: m.put(4), 0x94: _Machine.memoize,
    ord("h"): lambda m: m.get(1), ord("j"): lambda m: m.get(4),
    0x85: lambda m: m.tuple_of(1), 0x86: lambda m: m.tuple_of(2), 0x87: lambda m: m.tuple_of(3),
    ord("t"): _Machine.tuple_since_mark, ord("l"): _Machine.list_since_mark, ord("d"): _Machine.dict_since_mark,
    ord("a"): _Machine.append, ord("e"): _Machine.appends, ord("s"): _Machine.setitem, ord("u"): _Machine.setitems,
    ord("0"): _Machine.pop, ord("1"): _Machine.pop_mark, ord("c"): _Machine.global_, 0x93: _Machine.stack_global,
    ord("Q"): _Machine.persistent, ord("R"): _Machine.reduce, 0x81: _Machine.newobj, ord("b"): _Machine.build,
}  # fmt: skip
