"""The ctypes side of the C ABI against the header itself, through the system's C compiler."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from herder.core.batch import PAGE_TOKENS, Want
from herder.core.errors import HerderError, NumericError, OutOfMemory, UnsupportedModel, UsageError
from herder.core.request import MAX_TOP_LOGPROBS
from herder.runtime import abi

HEADER = Path(__file__).resolve().parents[2] / "native" / "include" / "herder.h"
STRUCTURES = {
    "hd_error": abi.Error,
    "hd_layer_plan": abi.LayerPlan,
    "hd_config": abi.Config,
    "hd_tensor": abi.Tensor,
    "hd_sampling": abi.Sampling,
    "hd_chunk": abi.Chunk,
}
CONSTANTS = {
    "HD_ABI_VERSION": abi.ABI_VERSION,
    "HD_PAGE_TOKENS": PAGE_TOKENS,
    "HD_MAX_TOP": MAX_TOP_LOGPROBS,
    "HD_OK": abi.OK,
    "HD_ERR_ARGUMENT": abi.ERR_ARGUMENT,
    "HD_ERR_MEMORY": abi.ERR_MEMORY,
    "HD_ERR_FORMAT": abi.ERR_FORMAT,
    "HD_ERR_NUMERIC": abi.ERR_NUMERIC,
    "HD_ERR_INTERNAL": abi.ERR_INTERNAL,
    "HD_ERR_INTERRUPTED": abi.ERR_INTERRUPTED,
    "HD_DTYPE_AUTO": abi.DTYPE_AUTO,
    "HD_DTYPE_FLOAT32": abi.DTYPE_FLOAT32,
    "HD_ROUTER_SOFTMAX": abi.ROUTER_SOFTMAX,
    "HD_ROUTER_SIGMOID": abi.ROUTER_SIGMOID,
    "HD_WANT_TOKEN": Want.TOKEN,
    "HD_WANT_LOGITS": Want.LOGITS,
    "HD_WANT_SCORE": Want.SCORE,
    "HD_WANT_HIDDEN": Want.HIDDEN,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes, offsets and constants as the C compiler sees them."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed, as for the core itself"
    lines = [f'P("{name}", {name});' for name in CONSTANTS]
    for name, structure in STRUCTURES.items():
        lines.append(f'P("{name}", sizeof({name}));')
        lines += [f'P("{name}.{field[0]}", offsetof({name}, {field[0]}));' for field in structure._fields_]
    source = tmp_path_factory.mktemp("abi") / "layout.c"
    program = "\n  ".join(lines)
    source.write_text(
        f'#include <stdio.h>\n#include "herder.h"\n#define P(name, value) printf("%s %zu\\n", name, (size_t)(value))\n'
        f"int main(void) {{\n  {program}\n  return 0;\n}}\n"
    )
    binary = source.with_suffix("")
    subprocess.run([compiler, "-I", HEADER.parent, source, "-o", binary], check=True)
    printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_agree_with_the_header(name: str, compiled: dict[str, int]) -> None:
    structure = STRUCTURES[name]
    ours = {f"{name}.{field[0]}": getattr(structure, field[0]).offset for field in structure._fields_}
    theirs = {key: value for key, value in compiled.items() if key.startswith(f"{name}.")}
    assert ours == theirs
    assert ctypes.sizeof(structure) == compiled[name]


@pytest.mark.parametrize("name", STRUCTURES)
def test_no_field_is_forgotten(name: str) -> None:
    body = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", HEADER.read_text(), re.S)
    assert body is not None
    declarations = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S).split(";")
    fields = [re.split(r"\[", part.split()[-1].lstrip("*"))[0] for line in declarations for part in line.split(",")
              if part.strip()]  # fmt: skip
    assert fields == [field[0] for field in STRUCTURES[name]._fields_]


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_agree_with_the_header(name: str, compiled: dict[str, int]) -> None:
    assert compiled[name] == CONSTANTS[name]


def test_every_function_of_the_header_is_bound() -> None:
    declared = set(re.findall(r"^HD_API [\w* ]*?\*?(hd_\w+)\(", HEADER.read_text(), re.M))
    assert declared == set(abi._SIGNATURES)
    for name, (_, arguments) in abi._SIGNATURES.items():
        parameters = re.search(rf"\b{name}\((.*?)\);", HEADER.read_text(), re.S)
        assert parameters is not None
        count = 0 if parameters[1].strip() == "void" else len(parameters[1].split(","))
        assert len(arguments) == count, name


@pytest.mark.parametrize(
    ("packer", "structure"), [(abi.PACK_CHUNK, abi.Chunk), (abi.PACK_SAMPLING, abi.Sampling)], ids=["chunk", "sampling"]
)
def test_one_pack_writes_every_field_in_its_place(packer: object, structure: type[ctypes.Structure]) -> None:
    assert packer.size == ctypes.sizeof(structure)  # type: ignore[attr-defined]
    values = list(range(1, len(structure._fields_) + 1))
    packed = structure.from_buffer_copy(packer.pack(*values))  # type: ignore[attr-defined]
    assert [getattr(packed, field[0]) for field in structure._fields_] == values


def error(message: str) -> abi.Error:
    return abi.Error(1, message.encode())


@pytest.mark.parametrize(
    ("status", "exception"),
    [
        (abi.ERR_ARGUMENT, RuntimeError),
        (abi.ERR_MEMORY, OutOfMemory),
        (abi.ERR_FORMAT, UnsupportedModel),
        (abi.ERR_NUMERIC, NumericError),
        (abi.ERR_INTERNAL, RuntimeError),
        (abi.ERR_INTERRUPTED, abi.Interrupted),
        (77, RuntimeError),
    ],
)
def test_a_status_becomes_an_exception(status: int, exception: type[Exception]) -> None:
    with pytest.raises(exception, match="the message") as raised:
        abi.fail(status, error("the message"))
    assert isinstance(raised.value, HerderError) == (not issubclass(exception, RuntimeError))
    assert "\n" not in str(raised.value)


def test_a_wrong_argument_is_the_callers_where_he_can_cause_one() -> None:
    with pytest.raises(UsageError, match="isa is mmx"):
        abi.fail(abi.ERR_ARGUMENT, error("isa is mmx"), UsageError)


def test_a_missing_or_wrong_library_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing: install Herder again"):
        abi.library(str(tmp_path / "nowhere.so"))
    junk = tmp_path / "junk.so"
    junk.write_bytes(b"not a library")
    with pytest.raises(UsageError, match="does not load"):
        abi.library(str(junk))
    other = tmp_path / "other.so"
    source = tmp_path / "other.c"
    source.write_text("int something(void) { return 1; }\n")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", other], check=True)
    with pytest.raises(UsageError, match="not Herder's native core"):
        abi.library(str(other))


def test_the_core_says_what_this_machine_is() -> None:
    information = abi.cpu_info()
    assert information["isa"] in information["isas"]
    assert "portable" in information["isas"]
    assert information["cores"] >= 1


def test_the_core_measures_this_machine() -> None:
    measured = abi.measure(threads=1, bytes_=1 << 20, seconds=0.01)
    assert min(measured) > 0
    with pytest.raises(UsageError, match="threads"):
        abi.measure(threads=-1)
    assert min(abi.measure(threads=1, bytes_=1 << 20, seconds=0.01, isa="portable")) > 0
    with pytest.raises(UsageError, match="isa is sse9"):
        abi.measure(threads=1, isa="sse9")
