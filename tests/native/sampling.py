"""The sampler of docs/numerics.md in plain NumPy: sorts everything, adds integers, draws. The core agrees exactly."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, log

import numpy as np
import numpy.typing as npt

from tests.native.abi import Floats, Options

WEIGHT_BITS = 42


def exp_weights(exponents: Floats) -> list[int]:
    """exp of float32 exponents <= 0 in units of 2^-42; float32 operations in the order of native/src/softmax.h."""
    f = np.float32
    d = np.maximum(exponents, f(-31))
    n = (d * f(1.44269504088896341) + f(12582912)) - f(12582912)
    r = (d - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = np.full_like(d, f(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(c)
    p = p * (r * r) + r + f(1)
    scaled = np.ldexp(p.astype(np.float64), n.astype(np.int32) + WEIGHT_BITS)
    return [int(w) for w in np.rint(scaled)]  # rint: ties to even, as float64 addition rounds


def adjusted(logits: Floats, o: Options) -> Floats:
    """The logits after bias, penalties and mask."""
    f = np.float32
    x = logits.astype(f).copy()
    for token, value in o.bias:
        x[token] += f(value)
    output = Counter(o.history[o.n_prompt :])
    if o.repetition_penalty != 1 or o.presence_penalty or o.frequency_penalty:
        for token in set(o.history):
            penalty = f(o.repetition_penalty)
            x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
            if token in output:
                x[token] = x[token] - f(o.presence_penalty) - f(o.frequency_penalty) * f(output[token])
    if o.allowed is not None:
        forbidden = np.ones(x.size, bool)
        forbidden[list(o.allowed)] = False
        x[forbidden] = -np.inf
    return x


def ranked(x: Floats) -> npt.NDArray[np.intp]:
    """Ids by descending logit, the lower id first on a tie."""
    return np.lexsort((np.arange(x.size), -x))


def kept(x: Floats, o: Options) -> tuple[list[int], list[int]]:
    """The tokens that temperature, top-k, top-p and min-p leave, in ranking order, and their weights."""
    f = np.float32
    if np.isposinf(x.max()):
        x = np.where(np.isposinf(x), f(0), f(-np.inf))
    limits = np.finfo(f)
    scale = np.clip(f(1) / f(o.temperature), limits.smallest_normal, limits.max)
    exponents = (x - x.max()) * scale
    ids = ranked(x)
    weights = exp_weights(exponents[ids])
    count = len(ids)
    if o.top_k > 0:
        count = min(count, o.top_k)
    if f(o.top_p) < 1:
        needed = max(1, ceil(Fraction(float(f(o.top_p))) * sum(weights[:count])))
        total, count = 0, 0
        while total < needed:
            total += weights[count]
            count += 1
    if o.min_p > 0:
        lowest = f(log(float(f(o.min_p))))
        count = min(count, int((exponents[ids] >= lowest).sum()))
    return [int(i) for i in ids[:count]], weights[:count]


def choose(logits: Floats, o: Options) -> int:
    """The token, or ValueError when there is none."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        x = adjusted(logits, o)
        if np.isneginf(x.max()):
            raise ValueError("nothing to choose from")
        if o.temperature == 0:
            return int(np.argmax(x))  # the first of the largest
        ids, weights = kept(x, o)
    position = philox(o.seed, o.step) * sum(weights) >> 64
    for token, weight in zip(ids, weights, strict=True):
        if position < weight:
            return token
        position -= weight
    raise AssertionError("position is below the sum")


def philox(seed: int, counter: int) -> int:
    """NumPy's own Philox4x64-10, which counts before it draws."""
    return int(np.random.Philox(key=seed, counter=(counter - 1) % 2**256).random_raw())


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())
