"""A model of a known shape with random weights: how fast a model runs does not depend on what it knows.

`llama-3.1-8b@q4_0` names a shape and a storage format. Blocks are random bytes under scales that give the weights mean
0 and a standard deviation of 0.02, so that activations stay finite. Tensors are made one at a time, when they are
loaded: memory stays at what the loader keeps plus one tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herder.core.config import ModelConfig
from herder.core.errors import UnsupportedModel, UsageError
from herder.formats import table
from herder.formats.table import BY_NAME, Format
from herder.weights.catalogue import VECTORS, matrix_format, published
from herder.weights.mapping import OwnedBytes
from herder.weights.names import Place, canonical_name
from herder.weights.source import ModelFiles, TensorSource, required, shape_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Blocks = NDArray[np.uint8]  # (blocks, bytes of a block)

STANDARD_DEVIATION = 0.02
_POOL = 4096  # different blocks of a format; a tensor draws from them

# Where a block's float16 scale lies, and the one of the offset beside it.
_SCALES: dict[Format, tuple[int, int | None]] = {
    table.Q4_0: (0, None),
    table.Q4_1: (0, 2),
    table.Q5_0: (0, None),
    table.Q5_1: (0, 2),
    table.Q8_0: (0, None),
    table.Q2_K: (80, 82),
    table.Q3_K: (108, None),
    table.Q4_K: (0, 2),
    table.Q5_K: (0, 2),
    table.Q6_K: (208, None),
    table.IQ4_NL: (0, None),
    table.IQ4_XS: (0, None),
}


class SyntheticFiles(ModelFiles):
    """ModelFiles without a file. load() makes each tensor when it is asked for."""

    def __init__(self, name: str, config: ModelConfig, matrices: Format) -> None:
        tensors = [_tensor(place, config, matrices) for place in required(config)]
        super().__init__(
            kind="synthetic",
            path=Path(name),
            files=[],
            config=config,
            tensors=tensors,
            metadata={},
            chat_templates={},
            bos=None,
            eos=None,
            stop_token_ids=frozenset(),
            name=f"{name}, random weights",
            licence="",
        )
        self.bytes = sum(tensor.bytes for tensor in tensors)

    def load(self) -> Iterator[TensorSource]:
        import numpy as np

        generator = np.random.default_rng(1)
        pools: dict[int, Blocks] = {}
        for tensor in self.tensors:
            form = tensor.format
            if tensor.rows == 1:
                data = np.ones(tensor.cols, np.float32).view(np.uint8)
            else:
                pool = pools.setdefault(form.id, _pool(form, generator))
                count = tensor.rows * tensor.cols // form.block
                data = pool[generator.integers(0, len(pool), count, np.uint16)].reshape(-1)
            kept = OwnedBytes(data)  # type: ignore[arg-type]  # anything with the buffer protocol
            del data
            yield dataclasses.replace(tensor, address=kept.address(0), file=kept)


def synthetic(name: str) -> SyntheticFiles:
    """The model called SHAPE@FORMAT, as in "llama-3.1-8b@q4_0".

    The embedding and the head are Q6_K when the format has fewer than 6 bits, as in files that llama.cpp quantizes;
    Q8_0 where their rows are no multiple of 256. Raises UsageError for an unknown shape or format, UnsupportedModel for
    a format whose blocks do not divide the shape's rows.
    """
    shape, at, wanted = name.partition("@")
    config = published(shape).config
    form = BY_NAME.get(wanted.upper())
    if not at or form is None or (form.quantized and form not in _SCALES):
        known = [other.name.lower() for other in table.FORMATS if not other.quantized or other in _SCALES]
        raise UsageError(f"{name!r} names no format: write {shape}@FORMAT with one of {', '.join(known)}")
    expert = config.experts.ffn_dim if config.experts is not None else config.ffn_dim
    for length in (config.dim, config.ffn_dim, expert, config.heads * config.head_dim):
        if not form.whole_blocks(length):
            raise UnsupportedModel(
                f"{shape} has rows of {length} weights, no whole blocks of the {form.block} weights of {form.name}: "
                "choose q8_0, q4_0 or f16"
            )
    return SyntheticFiles(name, config, form)


def _tensor(place: Place, config: ModelConfig, matrices: Format) -> TensorSource:
    role = place.role
    rows, cols = shape_of(role, config)
    form = table.F32 if role in VECTORS else matrix_format(role, cols, matrices)
    return TensorSource(
        name=canonical_name(*place),
        role=role,
        layer=place.layer,
        expert=place.expert,
        format_id=form.id,
        rows=rows,
        cols=cols,
        address=0,
        bytes=rows * form.row_bytes(cols),
    )


def _pool(form: Format, generator: Any) -> Blocks:
    """Random blocks of form whose weights have mean 0 and the standard deviation above."""
    import numpy as np

    from herder.formats import reference

    if not form.quantized:
        values = generator.normal(0, STANDARD_DEVIATION, (_POOL, form.block)).astype(np.float32)
        return reference.pack(form, values)
    blocks: Blocks = generator.integers(0, 256, (_POOL, form.block_bytes), np.uint8)
    scale, offset = _SCALES[form]

    # A weight is proportional to its block's scale when the offset is 0; half of the scales are negative, for mean 0.
    if offset is not None:
        _set(blocks, offset, 0.0)
    _set(blocks, scale, 1.0)
    value = STANDARD_DEVIATION / float(np.sqrt(np.mean(reference.unpack(form, blocks, 1, _POOL * form.block) ** 2)))
    _set(blocks[::2], scale, value)
    _set(blocks[1::2], scale, -value)
    return blocks


def _set(blocks: Blocks, offset: int, value: float) -> None:
    import numpy as np

    blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
