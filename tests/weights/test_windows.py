"""Windows into stored tensors and what is joined from them, against NumPy on the same numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.mapping import MappedFile
from herder.weights.names import Role
from herder.weights.windows import Window, join, window

COUNT = 4096
VALUES = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> MappedFile:
    path = tmp_path_factory.mktemp("windows") / "numbers"
    path.write_bytes(VALUES.tobytes())
    return MappedFile(path)


def expected(piece: Window) -> Any:
    steps = piece.row_step * 4, piece.col_step * 4
    return np.lib.stride_tricks.as_strided(VALUES[piece.offset // 4 :], (piece.rows, piece.cols), steps)


@st.composite
def windows(draw: st.DrawFn, rows: int | None = None, cols: int | None = None) -> tuple[int, int, int, int, int]:
    """(rows, cols, offset, row_step, col_step) inside the file, in any order of steps, with gaps."""
    rows = rows or draw(st.integers(1, 12))
    cols = cols or draw(st.integers(1, 12))
    inner = draw(st.integers(1, 3))
    outer = inner * max(rows, cols) + draw(st.integers(0, 5))
    steps = draw(st.permutations([inner, outer]))
    room = COUNT - ((rows - 1) * steps[0] + (cols - 1) * steps[1] + 1)
    return rows, cols, 4 * draw(st.integers(0, room)), steps[0], steps[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_are_joined_as_numpy_joins_them(file: MappedFile, data: st.DataObject) -> None:
    axis, count = data.draw(st.integers(0, 1)), data.draw(st.integers(1, 4))
    fixed = data.draw(st.integers(1, 12))
    sizes = {"cols": fixed} if axis == 0 else {"rows": fixed}
    pieces = [Window(file, "it", "F32", *data.draw(windows(**sizes))) for _ in range(count)]
    whole = np.concatenate([expected(piece) for piece in pieces], axis)
    found = join("name", Role.W_UP, 3, 1, pieces, axis, whole.shape)
    assert bytes(found.view()) == np.ascontiguousarray(whole).tobytes()
    assert (found.layer, found.expert, found.rows, found.cols, found.bytes) == (3, 1, *whole.shape, whole.nbytes)
    if count == 1 and (pieces[0].dense or (pieces[0].row_step == 1 and pieces[0].col_step >= pieces[0].rows)):
        assert found.make is None and found.address == file.address(pieces[0].offset)


def test_large_pieces_are_copied_in_steps(tmp_path: Path) -> None:
    """More than one step and more than one tile, straight and transposed."""
    values = np.arange(3000 * 700, dtype=np.float32).reshape(3000, 700)
    (tmp_path / "large").write_bytes(values.tobytes())
    file = MappedFile(tmp_path / "large")
    piece = window(file, "it", "F32", (3000, 700), 0, (700, 1))
    halves = [piece.some_rows(0, 1300), piece.some_rows(1300, 3000)]
    for pieces, axis, whole in ((halves, 0, values), ([half.transposed() for half in halves], 1, values.T)):
        found = join("name", Role.W_UP, 0, 0, pieces, axis, whole.shape)
        tracemalloc.start()
        made = found.view()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1.1 * whole.nbytes  # nothing as large beside what is made
        assert bytes(made) == np.ascontiguousarray(whole).tobytes()
    file.close()


def test_dimensions_after_the_first_are_taken_together(file: MappedFile) -> None:
    whole = window(file, "it", "F32", (4, 3, 2, 5), 0, (30, 10, 5, 1))
    assert (whole.rows, whole.cols, whole.dense) == (4, 30, True)
    apart = window(file, "it", "F32", (4, 3, 2, 5), 0, (40, 10, 5, 1))
    assert (apart.row_step, apart.dense) == (40, False)
    assert window(file, "it", "F32", (7,), 0, (2,)).col_step == 2
    assert window(file, "it", "F32", (), 0, ()).cols == 1
    for strides in ((30, 12, 5, 1), (30, 10, 5, 2), (30, 10, 1, 2)):
        with pytest.raises(UnsupportedModel, match="is not stored row after row"):
            window(file, "it", "F32", (4, 3, 2, 5), 0, strides)


def test_more_numbers_than_the_file_holds_are_refused(file: MappedFile) -> None:
    for shape, strides in (((1 << 40, 8), (0, 1)), ((COUNT + 1,), (0,)), ((100, 100), (1, 1))):
        with pytest.raises(ModelFileError, match="numbers is larger than its file"):
            window(file, "it", "F32", shape, 0, strides)


@pytest.mark.parametrize(("sizes", "axis", "shape", "message"), [
    ([(2, 3), (2, 3)], 0, (5, 3), "it has shape 2 x 3 on the first of 2 ranks, but params.json asks for 5 x 3"),
    ([(2, 3), (2, 4)], 0, (4, 3), "it has shape 2 x 3"), ([(2, 3)], None, (3, 2), "it has shape 2 x 3, but"),
    ([(1, 3), (2, 3), (3, 3)], 0, (2, 3), "it has shape 1 x 3"), ([(2, 3)] * 3, 0, (4, 3), "it has shape 2 x 3"),
    ([(2, 3), (2, 4)], None, (2, 3), "it has shape 2 x 3"),
])  # fmt: skip
def test_pieces_that_do_not_fit_are_named(
    file: MappedFile, sizes: list[tuple[int, int]], axis: int | None, shape: tuple[int, int], message: str
) -> None:
    pieces = [Window(file, "it", "F32", rows, cols, 0, cols) for rows, cols in sizes]
    with pytest.raises(ModelFileError, match=message):
        join("name", Role.W_UP, 0, 0, pieces, axis, shape)


def test_the_same_part_on_several_ranks_is_compared_when_it_is_made(file: MappedFile) -> None:
    one, two = (Window(file, f"rank {at}", "F32", 2, 3, 24 * at, 3) for at in range(2))
    found = join("name", Role.WK, 0, 0, [one, one, two, two], 0, (4, 3))
    assert bytes(found.view()) == VALUES[:12].tobytes()
    differing = join("name", Role.WK, 0, 0, [one, two], None, (2, 3))
    with pytest.raises(ModelFileError, match="rank 1 differs from that of another rank"):
        differing.view()
