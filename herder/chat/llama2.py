"""The Llama 2 chat format, which Code Llama 7B to 34B Instruct share.

    <s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {assistant} </s><s>[INST] {user} [/INST]

As in Meta's code (llama, generation.py, chat_completion): each question and its answer are one text between BOS and
EOS, contents are stripped of white space, and the system message is folded into the first question. BOS and EOS are
tokens; [INST], <<SYS>> and the like are only text. So text could forge them, and a message that spells one is refused,
as Meta's code refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat.format import Control, Prompt, Reading, Segment, Text, refuse_options
from herder.chat.message import Message, Tool
from herder.chat.turns import in_turns, refuse_answered, refuse_tags, refuse_tools
from herder.core.errors import UnsupportedModel
from herder.text.tokenizer import Tokenizer

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


class Llama2Format:
    """See the module. Raises UnsupportedModel when the vocabulary lacks BOS or EOS."""

    def __init__(self, tokenizer: Tokenizer, name: str = "llama2") -> None:
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UnsupportedModel("the vocabulary lacks BOS or EOS: it is not Llama 2's")
        self.name = name
        self._tokenizer = tokenizer
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
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
        """Takes no options and no tools. With add_generation_prompt the last message must be the user's."""
        refuse_options(options, (), self.name)
        refuse_tools(tools, self.name)
        refuse_tags(messages, TAGS, self.name)
        system, turns = in_turns(messages, self.name)
        if add_generation_prompt:
            refuse_answered(turns, self.name)
        segments: list[Segment] = []
        for i in range(0, len(turns), 2):
            question = turns[i].text
            if i == 0 and system is not None:
                question = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}"
            asked = f"[INST] {question.strip()} [/INST]"
            segments.append(Control(self._bos, self._tokenizer.token(self._bos)))
            if i + 1 == len(turns):
                segments.append(Text(asked, space=True))
                break
            whole = f"{asked} {turns[i + 1].text.strip()} "
            segments.append(Text(whole, ((len(asked), len(whole)),), space=True))
            segments.append(Control(self._eos, self._tokenizer.token(self._eos), learn=True))
        return Prompt(tuple(segments))

    @property
    def reading(self) -> Reading:
        return Reading(stripped=True)

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The answer without the spaces around it: it stands between "[/INST] " and " </s>"."""
        text = answer.removesuffix("</s>") if isinstance(answer, str) else self._tokenizer.decode(list(answer))
        return Message("assistant", text.strip())
