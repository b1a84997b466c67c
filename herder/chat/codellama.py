"""Code Llama: the chat format of 70B-Instruct, and the prompts with which 7B, 13B and their Instruct models fill gaps.

70B-Instruct (the smaller ones speak Llama 2's format), <step> being a token and all else text:

    <s> Source: system\\n\\n {system} <step> Source: user\\n\\n {user} <step>
        Source: assistant\\nDestination: user\\n\\n {assistant} <step>

Infilling, PRE, SUF and MID being tokens, and EOT the one with which the model ends:

    <s> PRE {prefix} SUF{suffix} MID        prefix first (PSM)
    <s> PRE SUF{suffix} MID {prefix}        suffix first (SPM)

Source: codellama, llama/generation.py (dialog_prompt_tokens, infilling_prompt_tokens) and llama/tokenizer.py. Each text
is encoded by itself, so a SentencePiece vocabulary puts its space before it; except the suffix, which continues the
code and gets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat.format import Control, Prompt, Reading, Segment, Text, refuse_options
from herder.chat.message import Message, Tool
from herder.chat.turns import in_turns, refuse_answered, refuse_tags, refuse_tools
from herder.core.errors import UnsupportedModel
from herder.text.tokenizer import Tokenizer

STEP = "<step>"
PRE, SUF, MID, EOT = "\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"


class CodeLlama70BFormat:
    """See the module. Raises UnsupportedModel when the vocabulary lacks <step> or BOS."""

    name = "codellama-70b"

    def __init__(self, tokenizer: Tokenizer) -> None:
        step = tokenizer.control_tokens().get(STEP)
        if step is None or tokenizer.bos_id is None:
            raise UnsupportedModel(f"the vocabulary lacks {STEP}: it is not Code Llama 70B Instruct's")
        self._tokenizer = tokenizer
        self._bos, self._step = tokenizer.bos_id, step
        self.stop_ids = tokenizer.stop_ids | {step}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """Takes no options and no tools. As in Meta's code, a conversation without a system message gets an empty one,
        contents are stripped, and an answer that is given back names no destination."""
        refuse_options(options, (), self.name)
        refuse_tools(tools, self.name)
        refuse_tags(messages, (STEP,), self.name)
        system, turns = in_turns(messages, self.name)
        if add_generation_prompt:
            refuse_answered(turns, self.name)
        segments: list[Segment] = [Control(self._bos, self._tokenizer.token(self._bos))]
        for message in (Message("system", system), *turns):
            mine = message.role == "assistant"
            segments.append(Text(f" Source: {message.role}", space=True))
            if message.text:
                body = "\n\n " + message.text.strip()
                segments.append(Text(body, ((3, len(body)),) if mine and len(body) > 3 else (), space=True))
            segments.append(Control(self._step, STEP, learn=mine))
        if add_generation_prompt:
            segments += [Text(" Source: assistant\nDestination: user", space=True), Text("\n\n ", space=True)]
        return Prompt(tuple(segments))

    @property
    def reading(self) -> Reading:
        return Reading(stripped=True)

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The answer without the spaces around it: it stands between a space and " <step>"."""
        text = answer.removesuffix(STEP) if isinstance(answer, str) else self._tokenizer.decode(list(answer))
        return Message("assistant", text.strip())


def infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, *, suffix_first: bool = False) -> Prompt:
    """The prompt whose answer belongs between `prefix` and `suffix`; the answer ends with EOT.

    suffix_first: the order SPM instead of PSM. Raises UnsupportedModel for a vocabulary without the four tokens.
    """
    control = tokenizer.control_tokens()
    missing = [token for token in (PRE, SUF, MID, EOT) if token not in control]
    if missing or tokenizer.bos_id is None:
        raise UnsupportedModel(
            "this model's vocabulary has no tokens for infilling: only Code Llama 7B, 13B and 70B do"
        )

    def mark(token: str) -> Control:
        return Control(control[token], token)

    begin = [Control(tokenizer.bos_id, tokenizer.token(tokenizer.bos_id)), mark(PRE)]
    before, after = Text(prefix, space=True), Text(suffix, space=False)
    if suffix_first:
        return Prompt((*begin, mark(SUF), after, mark(MID), before))
    return Prompt((*begin, before, mark(SUF), after, mark(MID)))
