"""DeepSeek's chat format for R1-Distill-Llama, with the model's reasoning kept apart from its answer.

    BOS {system} <|User|> {user} <|Assistant|> {answer} EOS          without the spaces, and with bars of double width

The model thinks first, up to </think>; newer templates, and DeepSeek's advice, begin its turn with "<think>\\n", so
that it cannot leave the thinking out. What it thought is no part of the conversation: answers given back lose it. As in
DeepSeek's template nothing is trimmed, and of several system messages the last counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat.format import Control, Prompt, Segment, Text, Thoughts, refuse_images, refuse_options
from herder.chat.message import Message, Tool
from herder.chat.turns import refuse_tools
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"  # FULLWIDTH VERTICAL LINE
OPEN, CLOSE = "<think>", "</think>"


class R1Format:
    """prefill: begin the assistant's turn with "<think>\\n". Raises UnsupportedModel for another vocabulary."""

    name = "r1"

    def __init__(self, tokenizer: Tokenizer, *, prefill: bool = True) -> None:
        control = tokenizer.control_tokens()
        missing = [token for token in (USER, ASSISTANT) if token not in control]
        if missing or tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UnsupportedModel(f"the vocabulary lacks {[*missing, 'BOS or EOS'][0]}: it is not DeepSeek-R1's")
        self._tokenizer = tokenizer
        self._ids = control
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
        self.prefill = prefill
        self.stop_ids = tokenizer.stop_ids | {self._eos}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """Takes no options and no tools."""
        refuse_options(options, (), self.name)
        refuse_tools(tools, self.name)
        refuse_images(messages, self.name)
        segments: list[Segment] = [self._control(self._bos)]
        system = [message.text for message in messages if message.role == "system"]
        if system:
            segments += _text(system[-1])
        for i, message in enumerate(messages):
            if message.tool_calls or message.role in ("tool", "ipython"):
                raise UsageError(f"messages[{i}] is about a tool: the chat format {self.name} has none, leave it out")
            if message.role == "user":
                segments += [self._control(self._ids[USER]), *_text(message.text)]
            elif message.role == "assistant":
                said = message.text.rpartition(CLOSE)[2]
                segments += [self._control(self._ids[ASSISTANT]), *_text(said, learn=True)]
                segments.append(self._control(self._eos, learn=True))
        if add_generation_prompt:
            segments.append(self._control(self._ids[ASSISTANT]))
            if self.prefill:
                opening = self._ids.get(OPEN)
                segments += [Text(f"{OPEN}\n")] if opening is None else [self._control(opening), Text("\n")]
        return Prompt(tuple(segments))

    def _control(self, token: int, learn: bool = False) -> Control:
        return Control(token, self._tokenizer.token(token), learn)

    @property
    def takes_reasoning(self) -> bool:
        return True  # and leaves it out

    @property
    def thoughts(self) -> Thoughts:
        return Thoughts(OPEN, CLOSE, self._ids.get(OPEN), self._ids.get(CLOSE), self.prefill)

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The answer, with what stands before </think> as its reasoning; without white space where the two met.

        Without </think>, a thought that was begun (by the prompt or the model) is all there is: its text is empty.
        """
        if isinstance(answer, str):
            text = answer.removesuffix(self._tokenizer.token(self._eos))
        else:
            marks = {self._ids.get(OPEN), self._ids.get(CLOSE)}
            kept = [token for token in answer if token in marks or not self._tokenizer.is_control(token)]
            text = self._tokenizer.decode(kept, skip_special=False)
        thought, closed, said = text.partition(CLOSE)
        began = thought.lstrip().startswith(OPEN)
        if not closed and not began and not self.prefill:
            return Message("assistant", text)
        thought = thought.lstrip().removeprefix(OPEN).strip()
        return Message("assistant", said.lstrip(), reasoning=thought)


def _text(text: str, learn: bool = False) -> list[Segment]:
    return [Text(text, ((0, len(text)),) if learn else ())] if text else []
