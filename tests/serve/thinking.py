"""A model for tests of the server that thinks before it answers: R1's chat format, and a text that it always says."""

from __future__ import annotations

from typing import Any

from herder.chat.r1 import ASSISTANT, USER, R1Format
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor, FakeModel
from tests.serve.models import CONFIG, LIMITS, fake_llm, tiny

THOUGHT, SAID = "Hm, a llama.", "It is a llama."


class Tiny(R1Format):
    """R1's format for the tiny models' vocabulary, which has no tokens for its turns."""

    def __init__(self) -> None:
        tokenizer, _ = tiny()
        turn, end = (tokenizer.id_of(token) for token in ("<|im_start|>", "<|im_end|>"))
        assert turn is not None and end is not None
        self._tokenizer, self._ids, self._bos, self._eos = tokenizer, {USER: turn, ASSISTANT: turn}, turn, end
        self.prefill, self.stop_ids = True, frozenset({end})


class Scripted(FakeModel):
    """Says one text, whatever it is asked."""

    script: tuple[int, ...] = ()

    def sample(self, *given: Any) -> int:
        step: int = given[3]
        return self.script[step]


def thinking_llm() -> LLM:
    executor = FakeExecutor(LIMITS, dim=CONFIG.dim)
    model = Scripted(LIMITS.vocab, CONFIG.dim)
    chat_format = Tiny()
    text = tiny()[0].encode(f"{THOUGHT}\n</think>\n\n{SAID}")
    model.script = (*text, *chat_format.stop_ids)
    executor.model = model
    llm = fake_llm(executor)
    llm.chat_format = chat_format
    return llm
