"""What top-k, top-p, min-p and the repetition penalty keep, against Hugging Face transformers.

test_sample.py shows that the core is the NumPy sampler, exactly; here the NumPy sampler meets code nobody here wrote.
Float32 sums place a border of top-p or min-p a little differently: tokens within 1e-5 of it may fall either way.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native import sampling
from tests.native.abi import Options

pytestmark = pytest.mark.oracle


@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(2, 500),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 50]),
    top_p=st.sampled_from([1.0, 0.3, 0.9, 0.99]),
    min_p=st.sampled_from([0.0, 0.01, 0.2]),
    repetition=st.sampled_from([1.0, 1.3]),
)
def test_kept_tokens(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float, repetition: float
) -> None:
    import torch
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as hf

    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, vocab).astype(np.float32)
    history = rng.integers(0, vocab, 20)
    o = Options(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition,
        history=history.tolist(), n_prompt=10,
    )  # fmt: skip
    steps = LogitsProcessorList(
        [hf.RepetitionPenaltyLogitsProcessor(repetition), hf.TemperatureLogitsWarper(temperature)]
    )
    if top_k:
        steps.append(hf.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(hf.TopPLogitsWarper(top_p))
    if min_p:
        steps.append(hf.MinPLogitsWarper(min_p))
    scores = steps(torch.from_numpy(history)[None], torch.from_numpy(x)[None])[0]
    theirs, their_ids = torch.softmax(scores, -1).numpy(), set(np.flatnonzero(np.isfinite(scores.numpy())))

    ids, weights = sampling.kept(sampling.adjusted(x, o), o)
    ours = np.zeros(vocab)
    ours[ids] = np.array(weights, np.float64) / sum(weights)
    if set(ids) == their_ids:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)
        return
    # Only by tokens at a border: between what a hair less and a hair more would keep.
    narrow = Options(**{**vars(o), "top_p": min(top_p, top_p * (1 - 1e-5)), "min_p": min_p * (1 + 1e-5)})
    wide = Options(**{**vars(o), "top_p": min(1, top_p * (1 + 1e-5)), "min_p": min_p * (1 - 1e-5)})
    fewest, most = (set(sampling.kept(sampling.adjusted(x, v), v)[0]) for v in (narrow, wide))
    assert fewest <= their_ids <= most
