"""The native core's sampler over logits that PyTorch computed: the same seed and logits give the same token."""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.batch import Chunk, int_array
from herder.core.request import TokenLogprob
from herder.runtime import abi


class Sampler:
    """Chooses the tokens of one chunk, as its Sampling asks."""

    def __init__(self, chunk: Chunk, vocab: int) -> None:
        sampling = chunk.sampling
        assert sampling is not None
        self._chunk, self._options, self._vocab = chunk, sampling, vocab
        self._core = abi.library()
        self._sampling, self._error = abi.Sampling(), abi.Error()
        self._bias_ids = array("i", [token for token, _ in sampling.logit_bias])
        self._bias_values = array("f", [value for _, value in sampling.logit_bias])
        self._mask = None if chunk.mask is None else array("I", chunk.mask)
        self._history: array[int] = array("i")
        self._seen, self._prompt = len(chunk.history), chunk.prompt_tokens
        if chunk.history:
            # A later output position also sees the chunk's tokens between the first one and itself.
            first = len(chunk.tokens) - chunk.outputs
            self._history = int_array(chunk.history) + int_array(chunk.tokens)[first + 1 :]
            if max(self._history) >= vocab:
                self._leave_out_images()
        self._token = array("i", [0])
        self._logprob = array("f", [0.0])
        self._top_ids = array("i", [0]) * (sampling.logprobs or 0)
        self._top_logprobs = array("f", [0.0]) * (sampling.logprobs or 0)

    def choose(self, output: int, logits: NDArray[np.float32]) -> tuple[int, TokenLogprob | None]:
        """The token of output position `output`, whose logits these are, and its log-probability if it is wanted.

        Raises NumericError for logits that are no numbers, or when bias and mask forbid every token.
        """
        chunk, options = self._chunk, self._options
        seen = self._seen
        mask_at = 0 if self._mask is None else _address(self._mask) + 4 * -(-self._vocab // 32) * output
        abi.PACK_SAMPLING.pack_into(
            self._sampling, 0,
            options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty,
            options.presence_penalty, options.frequency_penalty, chunk.seed, chunk.step + output,
            len(self._bias_ids), _address(self._bias_ids), _address(self._bias_values), mask_at,
            _address(self._history), seen + output if seen else 0, self._prompt if seen else 0,
            len(self._top_ids),
        )  # fmt: skip
        row = np.ascontiguousarray(logits, np.float32)
        status = self._core.hd_sample(
            row.ctypes.data, self._vocab, ctypes.addressof(self._sampling), _address(self._token),
            None if options.logprobs is None else _address(self._logprob), _address(self._top_ids) or None,
            _address(self._top_logprobs) or None, ctypes.addressof(self._error),
        )  # fmt: skip
        if status:
            abi.fail(status, self._error)
        if options.logprobs is None:
            return self._token[0], None
        top = tuple(zip(self._top_ids, self._top_logprobs, strict=True))
        return self._token[0], TokenLogprob(self._token[0], self._logprob[0], top)

    def _leave_out_images(self) -> None:
        """Llama 3.2 Vision's image token is not in the vocabulary: there is no logit to penalize. It stands in prompts,
        or is guessed by speculation, and then nothing after it counts."""
        prompt, rest = self._history[: self._seen], self._history[self._seen :]
        shown = array("i", [token for token in prompt if token < self._vocab])
        self._history = shown + array("i", [min(token, self._vocab - 1) for token in rest])
        self._seen, self._prompt = len(shown), self._prompt - (len(prompt) - len(shown))


def _address(values: array[Any]) -> int:
    return values.buffer_info()[0] if values else 0
