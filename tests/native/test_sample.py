"""hd_sample against the plain NumPy sampler, exactly; and against what probability says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import sampling
from tests.native.abi import ERR_ARGUMENT, ERR_NUMERIC, Floats, Options, Refused, sample

INFINITY = float("inf")


def row(seed: int, vocab: int, spread: float = 3, distinct: int = 0) -> Floats:
    """Logits as a model has them; with few distinct values, full of ties."""
    x = np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)
    return x if distinct == 0 else (np.round(x * distinct / (4 * spread)) / distinct * (4 * spread)).astype(np.float32)


rows = st.builds(
    row,
    st.integers(0, 2**32),
    st.one_of(st.integers(1, 40), st.integers(41, 3000)),
    st.sampled_from([0.01, 1, 3, 12]),
    st.sampled_from([0, 0, 1, 3, 40]),
)


@st.composite
def cases(draw: st.DrawFn, temperature: st.SearchStrategy[float]) -> tuple[Floats, Options]:
    x = draw(rows)
    ids = st.integers(0, x.size - 1)
    history = draw(st.one_of(st.just([]), st.lists(ids, max_size=30)))
    bias = draw(st.dictionaries(ids, st.sampled_from([-INFINITY, -100.0, -1.5, 0.0, 2.0, 30.0, INFINITY]), max_size=5))
    allowed = draw(st.one_of(st.none(), st.none(), st.lists(ids, max_size=10, unique=True)))
    return x, Options(
        temperature=draw(temperature),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, 40, 64, 1000, 5000])),
        top_p=draw(st.one_of(st.just(1.0), st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.95, 0.999999]))),
        min_p=draw(st.one_of(st.just(0.0), st.sampled_from([1e-20, 0.001, 0.05, 0.3, 1.0]))),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.1, 2.0, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.6, -1.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.3, -0.5])),
        seed=draw(st.integers(0, 2**64 - 1)),
        step=draw(st.integers(0, 2**62)),
        bias=tuple(bias.items()),
        allowed=allowed,
        history=history,
        n_prompt=draw(st.integers(0, len(history))),
        top_logprobs=draw(st.integers(0, min(64, x.size))),
    )


def assert_agrees(x: Floats, o: Options) -> None:
    try:
        token = sampling.choose(x, o)
    except ValueError:
        with pytest.raises(Refused, match="no token is left to choose from") as e:
            sample(x, o)
        assert e.value.code == ERR_NUMERIC
        return
    ours = sample(x, o)
    assert ours.token == token
    expected = sampling.log_softmax(x)
    np.testing.assert_allclose(ours.logprob, expected[token], rtol=3e-7, atol=3e-7)
    assert ours.top_ids == sampling.ranked(x)[: o.top_logprobs].tolist()
    np.testing.assert_allclose(ours.top_logprobs, expected[ours.top_ids], rtol=3e-7, atol=3e-7)


@settings(max_examples=300)
@given(cases(st.sampled_from([1e-30, 0.1, 0.7, 1.0, 1.5, 5.0, 100.0, 3e38])))
def test_drawn_tokens(case: tuple[Floats, Options]) -> None:
    assert_agrees(*case)


@given(cases(st.just(0.0)))
def test_greedy_tokens(case: tuple[Floats, Options]) -> None:
    assert_agrees(*case)


@pytest.mark.parametrize("vocab", [49152, 128256, 202048])
@pytest.mark.parametrize("options", [
    Options(),
    Options(temperature=1),
    Options(temperature=100),
    Options(temperature=0.8, top_p=0.95),
    Options(temperature=30, top_p=0.999),
    Options(temperature=1, top_k=40),
    Options(temperature=1, top_k=20000),
    Options(temperature=1, top_k=100, top_p=0.9, min_p=0.02),
    Options(temperature=2, min_p=0.05),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("distinct", [0, 3])
def test_real_vocabularies(vocab: int, options: Options, distinct: int) -> None:
    assert_agrees(row(vocab, vocab, 3, distinct), replace(options, seed=vocab, step=7, top_logprobs=20))


def test_all_logits_equal() -> None:
    """One tie across everything: greedy takes token 0, top-k the lowest ids, a draw any token."""
    x = np.zeros(5000, np.float32)
    assert sample(x, Options()).token == 0
    assert {sample(x, Options(temperature=1, top_k=3, seed=s)).token for s in range(60)} == {0, 1, 2}
    assert {sample(x, Options(temperature=1, top_p=0.0008, seed=s)).token for s in range(80)} == {0, 1, 2, 3}
    drawn = [sample(x, Options(temperature=1, seed=s)).token for s in range(400)]
    assert min(drawn) < 100 and max(drawn) > 4900 and len(set(drawn)) > 350


def test_a_zero_is_a_zero() -> None:
    """-0 and 0 tie."""
    assert sample(np.array([-0.0, 0.0], np.float32), Options()).token == 0
    assert sample(np.array([-0.0, 0.0], np.float32), Options(temperature=1, top_k=1)).token == 0


@pytest.mark.parametrize("options", [
    Options(temperature=1),
    Options(temperature=0.5),
    Options(temperature=1.3, top_k=6),
    Options(temperature=1, top_p=0.8),
    Options(temperature=1, min_p=0.1),
    Options(temperature=1, allowed=[1, 3, 5, 18], bias=[(3, 1.0)]),
], ids=str)  # fmt: skip
def test_frequencies(options: Options) -> None:
    """Pearson's chi-square over 20,000 draws with fixed seeds, against float64 softmax of what is kept."""
    x, draws = row(5, 20, 1.5), 20_000
    counts = Counter(sample(x, replace(options, seed=s % 40, step=s // 40)).token for s in range(draws))
    z = sampling.adjusted(x, options).astype(np.float64) / options.temperature
    ids, _ = sampling.kept(sampling.adjusted(x, options), options)
    ids = [i for i in ids if np.isfinite(z[i])]
    p = np.exp(z[ids] - z[ids].max())
    p /= p.sum()
    assert set(counts) <= set(ids)
    chi2 = sum((counts[i] - draws * q) ** 2 / (draws * q) for i, q in zip(ids, p, strict=True))
    freedom = len(ids) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    x = row(9, 1000, 0.5)
    draws = {(seed, step): sample(x, Options(temperature=1, seed=seed, step=step)).token
             for seed in range(12) for step in range(12)}  # fmt: skip
    again = {k: sample(x, Options(temperature=1, seed=k[0], step=k[1])).token for k in reversed(draws)}
    assert draws == again
    # Neither repeats along steps or seeds, nor is it a function of their sum.
    assert len({tuple(draws[s, i] for i in range(12)) for s in range(12)}) == 12
    assert len({draws[s, 11 - s] for s in range(12)}) > 6


def test_penalties_by_hand() -> None:
    x = np.array([2, -2, 2, -2, 2, 0.5], np.float32)
    o = Options(repetition_penalty=2, presence_penalty=0.25, frequency_penalty=0.5, history=[0, 1, 2, 2, 3], n_prompt=2)
    # 0, 1: prompt only; 2: twice in the output; 3: once in the output.
    assert sampling.adjusted(x, o).tolist() == [1, -4, 2 / 2 - 0.25 - 1, -4 - 0.25 - 0.5, 2, 0.5]


@given(cases(st.just(0.0)), st.data())
def test_adjusted_logits_to_the_last_bit(case: tuple[Floats, Options], data: st.DataObject) -> None:
    """A token after bias and penalties lies between two others whose logits are one float apart."""
    x, o = case
    token = data.draw(st.sampled_from([*o.history, *(t for t, _ in o.bias), 0]))
    with np.errstate(over="ignore"):
        value = sampling.adjusted(x, replace(o, allowed=None))[token]
    if np.isfinite(value):
        below, above = np.nextafter(value, np.float32([-INFINITY, INFINITY]))
        duel = replace(o, allowed=[token, x.size])
        assert sample(np.append(x, below), duel).token == token
        assert sample(np.append(x, above), duel).token == x.size


def test_bias_before_penalty() -> None:
    """A token at +1 with bias -3 is at -2 when the repetition penalty sees it, so it is multiplied."""
    x = np.array([1, -3.5], np.float32)
    o = Options(bias=[(0, -3)], repetition_penalty=2, history=[0], n_prompt=1)
    assert sample(x, o).token == 1
    assert sample(x, replace(o, repetition_penalty=1.5)).token == 0


def test_infinite_biases() -> None:
    x = row(3, 100)
    best = int(x.argmax())
    assert sample(x, Options(bias=[(best, -INFINITY)])).token == sampling.ranked(x)[1]
    drawn = {sample(x, Options(temperature=1, seed=s, bias=[(7, INFINITY), (90, INFINITY)])).token for s in range(50)}
    assert drawn == {7, 90}
    assert sample(x, Options(bias=[(90, INFINITY), (7, INFINITY)])).token == 7
    assert sample(x, Options(bias=[(7, 1.0), (7, INFINITY), (7, -5.0)])).token == 7
    with pytest.raises(Refused, match="biases of token 7 are both"):
        sample(x, Options(bias=[(7, INFINITY), (7, -INFINITY)]))


def test_logprobs_are_the_models() -> None:
    """Neither bias nor mask nor temperature changes them."""
    x = row(4, 300)
    plain = sample(x, Options(top_logprobs=5))
    o = Options(temperature=3, bias=[(5, 40.0)], allowed=[5, 6], repetition_penalty=1.5, history=[5], top_logprobs=5)
    forced = sample(x, o)
    assert (forced.top_ids, forced.top_logprobs) == (plain.top_ids, plain.top_logprobs)
    assert forced.token == 5
    np.testing.assert_allclose(forced.logprob, sampling.log_softmax(x)[5], rtol=3e-7)


def test_logprobs_of_extreme_rows() -> None:
    x = np.array([3e38, -3e38, 0, 3e38], np.float32)
    ours = sample(x, Options(top_logprobs=4))
    assert ours.top_ids == [0, 3, 2, 1]
    np.testing.assert_allclose(ours.top_logprobs, [-np.log(2), -np.log(2), -3e38, -INFINITY], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 200, 299])
def test_non_finite_logits_are_refused(bad: float, place: int) -> None:
    x = row(1, 300)
    x[place] = bad
    with pytest.raises(Refused, match=f"logit of token {place} is .*: the model's output must be finite") as e:
        sample(x, Options(allowed=[1]))
    assert e.value.code == ERR_NUMERIC


@pytest.mark.parametrize(("change", "message"), [
    ({"temperature": -1}, "temperature is -1"),
    ({"temperature": np.nan}, "temperature is nan"),
    ({"temperature": np.inf}, "temperature is inf"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_p": 1.01}, "top_p is 1.01"),
    ({"min_p": -0.5}, "min_p is -0.5"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"presence_penalty": np.inf}, "presence_penalty is inf"),
    ({"frequency_penalty": np.nan}, "frequency_penalty is nan"),
    ({"step": -1}, "step is -1"),
    ({"top_logprobs": 65}, "top_logprobs is 65: must be 0 to 64"),
    ({"bias": [(3, 0.0), (300, 1.0)]}, r"bias_ids\[1\] is 300: the vocabulary has tokens 0 to 299"),
    ({"bias": [(-1, 0.0)]}, r"bias_ids\[0\] is -1"),
    ({"bias": [(1, np.nan)]}, r"bias_values\[0\] is NaN"),
    ({"history": [1, 300]}, r"history\[1\] is 300"),
    ({"history": [1], "n_prompt": 2}, "n_prompt is 2: must be 0 to n_history, 1"),
])  # fmt: skip
def test_bad_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as e:
        sample(row(1, 300), replace(Options(), **change))
    assert e.value.code == ERR_ARGUMENT


@pytest.mark.parametrize("vocab", [0, -5, 2**20 + 1])
def test_bad_vocabularies_are_refused(vocab: int) -> None:
    with pytest.raises(Refused, match=f"vocab is {vocab}: must be 1 to 1048576"):
        sample(row(1, 1), Options(), vocab=vocab)


def test_more_alternatives_than_tokens_are_refused() -> None:
    with pytest.raises(Refused, match="top_logprobs is 6: must be 0 to 5"):
        sample(row(1, 5), Options(top_logprobs=6))
