"""Models of known shapes with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from herder.core.errors import UnsupportedModel, UsageError
from herder.formats import reference, table
from herder.weights import synthetic


def test_an_unknown_shape_or_format() -> None:
    with pytest.raises(UsageError, match=r"there is no published model 'llama-9b': did you mean llama-\d+b"):
        synthetic.synthetic("llama-9b@q4_0")
    for name in ("smollm2-135m", "smollm2-135m@", "smollm2-135m@q9"):
        with pytest.raises(UsageError, match=r"write smollm2-135m@FORMAT with one of f32, f16"):
            synthetic.synthetic(name)
    with pytest.raises(UnsupportedModel, match="rows of 576 weights"):
        synthetic.synthetic("smollm2-135m@q4_k")


def test_the_tensors_of_a_tied_and_an_untied_model() -> None:
    tied = synthetic.synthetic("smollm2-135m@q4_1")
    assert len(tied.tensors) == 2 + 30 * 9
    assert {tensor.format.name for tensor in tied.tensors} == {"Q4_1", "Q8_0", "F32"}
    untied = synthetic.synthetic("llama-3.1-8b@q4_0")
    assert len(untied.tensors) == 3 + 32 * 9
    assert {tensor.format.name for tensor in untied.tensors} == {"Q4_0", "Q6_K", "F32"}
    assert sum(tensor.rows * tensor.cols for tensor in untied.tensors) == untied.config.parameters


def test_tensors_are_made_one_at_a_time_and_hold_what_they_say() -> None:
    files = synthetic.synthetic("smollm2-135m@q8_0")
    seen = 0
    for tensor in files.load():
        assert len(tensor.view()) == tensor.bytes
        seen += tensor.bytes
        if tensor.layer > 0:
            break
        values = reference.unpack(tensor.format, tensor.view(), tensor.rows, tensor.cols)
        if tensor.rows == 1:
            assert (values == 1).all()
        else:
            assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(0.02, rel=0.05)
    assert seen < files.bytes


@pytest.mark.parametrize("form", [f for f in table.FORMATS if not f.quantized or f in synthetic._SCALES])
def test_random_blocks_of_every_format_are_sane(form: table.Format) -> None:
    pool = synthetic._pool(form, np.random.default_rng(0))
    values = reference.unpack(form, pool.reshape(-1), 1, len(pool) * form.block)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(0.02, rel=0.05)
