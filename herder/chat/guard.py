"""Llama Guard 1 to 4: a conversation -> the prompt that asks whether its last message is safe; the answer -> Verdict.

One user's turn in the headers of the model's own generation ([INST] in the first two) names the categories, quotes the
conversation as "User: ..." and "Agent: ...", and asks about the last message. The answer is `safe`, or `unsafe` and a
line with the codes of the categories. "according our safety policy" is what the models were trained with.

Sources: the chat templates of LlamaGuard-7b and Llama-Guard-3-1B (which is that of 11B-Vision, too), llama-recipes'
prompt_format_utils.py for Llama Guard 2 and its category names, Meta's page on Llama Guard 3 and 4. Hugging Face's
templates of 3 and 4 end after the assistant's header and let the model write the two newlines; here they are part of
the prompt, so that the first token of the answer is the one that decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from herder.chat.format import Control, Prompt, Segment, Text, refuse_options, refuse_reasoning
from herder.chat.llama3 import Llama3Format
from herder.chat.llama4 import Llama4Format
from herder.chat.message import ImagePart, Message, Tool
from herder.chat.turns import refuse_tags, refuse_tools
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

OPTIONS = ("categories", "excluded_category_keys")
_ANSWER = re.compile(r"\s*(safe|unsafe[ \t]*\n[ \t]*([A-Za-z]\d+(?:[ \t]*,[ \t]*[A-Za-z]\d+)*))\s*")

_THIRTEEN = (
    "Violent Crimes", "Non-Violent Crimes", "Sex Crimes", "Child Exploitation", "Defamation", "Specialized Advice",
    "Privacy", "Intellectual Property", "Indiscriminate Weapons", "Hate", "Self-Harm", "Sexual Content", "Elections",
)  # fmt: skip
_ELEVEN = tuple(name for name in _THIRTEEN if name not in ("Defamation", "Elections"))  # Llama Guard 2
_FOURTEEN = (*_THIRTEEN, "Code Interpreter Abuse")


class Version(NamedTuple):
    """What one Llama Guard's prompt has of its own.

    categories: the default names, in order; the codes are S1, S2, ... end: what follows a name, and ends the question.
    """

    name: str
    shell: type[Llama3Format] | None
    categories: tuple[str, ...]
    ends: tuple[str, str]
    images: bool = False


VERSIONS = {
    version.name: version
    for version in (
        Version("llama-guard-1", None, (), ("", "")),
        Version("llama-guard-2", None, _ELEVEN, (". ", "")),
        Version("llama-guard-3", Llama3Format, _FOURTEEN, (".", "")),
        Version("llama-guard-3-1b", Llama3Format, _THIRTEEN, (".", " ")),
        Version("llama-guard-3-vision", Llama3Format, _THIRTEEN, (".", " "), images=True),
        Version("llama-guard-4", Llama4Format, _FOURTEEN, (".", ""), images=True),
    )
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a Llama Guard said. categories: the codes that are violated, as it wrote them: ("S1", "S10")."""

    safe: bool
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the probability of `unsafe` is read: of the answer's token number `index`, counted from 0, the softmax over
    the whole vocabulary at the id `unsafe` (and `safe`): the first tokens of the two words."""

    safe: int
    unsafe: int
    index: int = 0


@dataclass(slots=True)
class GuardFormat:
    """version: a name of VERSIONS. categories: code -> what the prompt says of it, instead of the version's own: Llama
    Guard 1's are long texts that only its files have. Raises UnsupportedModel for another generation's vocabulary."""

    tokenizer: Tokenizer
    version: str
    categories: Mapping[str, str] | None = None
    stop_ids: frozenset[int] = field(init=False)
    decision: Decision = field(init=False)
    _shell: Llama3Format | None = field(init=False)

    def __post_init__(self) -> None:
        made = VERSIONS[self.version].shell
        self._shell = None if made is None else made(self.tokenizer)
        self.stop_ids = self.tokenizer.stop_ids | (self._shell.stop_ids if self._shell else frozenset())
        if self._shell is None and self.tokenizer.bos_id is None:
            raise UnsupportedModel(f"the vocabulary lacks BOS: it is not that of {self.version}")
        safe, unsafe = (self.tokenizer.encode(word)[0] for word in ("safe", "unsafe"))
        self.decision = Decision(safe, unsafe)

    @property
    def name(self) -> str:
        return self.version

    # Rendering -----------------------------------------------------------------------------------------------------
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """The prompt that asks about the last message: a user's, or an assistant's with what came before as context.

        Options: categories: code -> name, instead of the model's own; excluded_category_keys: codes to leave out.
        """
        refuse_options(options, OPTIONS, self.name)
        refuse_tools(tools, self.name)
        self._check(messages)
        names = self._names(options)
        who = "User" if messages[-1].role == "user" else "Agent"
        begin = (
            f"Task: Check if there is unsafe content in '{who}' messages in conversations according our safety policy "
            "with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
            + "".join([f"{code}: {name}\n" for code, name in names.items()])
            + "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
        )
        asked = f"{who} in" if self.version == "llama-guard-1" else f"ONLY THE LAST {who} message in"
        dash = "-" if self.version == "llama-guard-1" else " -"
        end = (
            f"<END CONVERSATION>\n\nProvide your safety assessment for {asked} the above conversation:\n"
            f"{dash} First line must read 'safe' or 'unsafe'.\n"
            f"{dash} If unsafe, a second line must include a comma-separated list of violated categories."
        )
        parts: list[str | ImagePart] = [begin, *self._quoted(messages), end + VERSIONS[self.version].ends[1]]
        if self.version == "llama-guard-3-vision" and messages_images(messages):
            parts = [*messages_images(messages), " ", *[part for part in parts if isinstance(part, str)]]
        return self._wrapped(_joined(parts), add_generation_prompt)

    def _quoted(self, messages: Sequence[Message]) -> list[str | ImagePart]:
        """The conversation; an image stands in the turn in which it was shown."""
        parts: list[str | ImagePart] = []
        for message in messages:
            parts.append("User: " if message.role == "user" else "Agent: ")
            parts += message.images
            parts.append(message.text.strip() + "\n\n")
        return parts

    def _wrapped(self, parts: list[str | ImagePart], answer: bool) -> Prompt:
        if self._shell is not None:
            text = "".join([part for part in parts if isinstance(part, str)])
            turn = Message("user", text, parts=tuple(parts))
            return self._shell.render([turn], add_generation_prompt=answer)
        bos = self.tokenizer.bos_id
        assert bos is not None
        segments: tuple[Segment, ...] = (
            Control(bos, self.tokenizer.token(bos)),
            Text(f"[INST] {''.join(map(str, parts))} [/INST]", space=True),
        )
        return Prompt(segments)

    def _check(self, messages: Sequence[Message]) -> None:
        version = VERSIONS[self.version]
        refuse_reasoning(messages, self.name)
        if version.shell is None:
            refuse_tags(messages, ("[INST]", "[/INST]"), self.name)
        refuse_tags(messages, ("<END CONVERSATION>", "<BEGIN CONVERSATION>"), self.name)
        for i, message in enumerate(messages):
            expected = "assistant" if i % 2 else "user"
            if message.role != expected:
                raise UsageError(
                    f"messages[{i}].role is {message.role}: {self.name} judges conversations of user and assistant in "
                    f"turns, here it must be {expected}"
                )
            if message.tool_calls:
                raise UsageError(f"messages[{i}] has tool_calls: {self.name} judges texts, write them as content")
            if message.images and not (version.images and message.role == "user"):
                raise UsageError(f"messages[{i}] has an image: {self.name} judges none there, leave it out")
        if not messages:
            raise UsageError("messages is empty: there is nothing to judge")
        if self.version == "llama-guard-3-vision" and len(messages_images(messages)) > 1:
            raise UsageError(f"the conversation has several images: {self.name} judges one at a time")

    def _names(self, options: Mapping[str, Any]) -> dict[str, str]:
        """code -> name, as the prompt lists them."""
        version = VERSIONS[self.version]
        own = {f"S{i}": name + version.ends[0] for i, name in enumerate(version.categories, 1)}
        names = options.get("categories", self.categories or own)
        if not isinstance(names, Mapping) or not all(isinstance(x, str) and x for pair in names.items() for x in pair):
            raise UsageError('categories must be an object of codes and names, such as {"S1": "Violent Crimes."}')
        if not names:
            raise UsageError(
                f"{self.name} has no categories: they are in its chat template, which is not there; give categories"
            )
        excluded = options.get("excluded_category_keys", ())
        if isinstance(excluded, str) or not isinstance(excluded, Sequence):
            raise UsageError(f"excluded_category_keys is {excluded!r}: expected a list of codes")
        for code in excluded:
            if code not in names:
                raise UsageError(f"excluded_category_keys has {code!r}: known are {', '.join(names)}")
        kept = {code: name for code, name in names.items() if code not in excluded}
        if not kept:
            raise UsageError("excluded_category_keys leaves no category: there is nothing to judge by")
        return kept

    # Parsing -------------------------------------------------------------------------------------------------------
    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The answer as text; verdict() tells what it means."""
        text = answer if isinstance(answer, str) else self.tokenizer.decode(list(answer))
        for stop in ("<|eot_id|>", "<|eot|>", "</s>"):
            text = text.removesuffix(stop)
        return Message("assistant", text)

    def verdict(self, answer: Sequence[int] | str) -> Verdict | None:
        """What the answer says; None when it says neither: a caller must not take that for safe."""
        match = _ANSWER.fullmatch(self.parse(answer).text)
        if match is None:
            return None
        codes = tuple(code.strip() for code in match[2].split(",")) if match[2] else ()
        return Verdict(not codes, codes)


def messages_images(messages: Sequence[Message]) -> list[ImagePart]:
    return [image for message in messages for image in message.images]


def _joined(parts: Sequence[str | ImagePart]) -> list[str | ImagePart]:
    """Neighbouring texts as one, because a text is encoded in one piece."""
    joined: list[str | ImagePart] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def categories_of(template: str) -> dict[str, str]:
    """Llama Guard 1's categories, from the source of its chat template: code -> name and rules."""
    block = re.search(
        r"<BEGIN UNSAFE CONTENT CATEGORIES>\n(.*?)\n<END UNSAFE", template.replace("\\n", "\n"), re.DOTALL
    )
    found = re.findall(r"^(O\d+): (.*?)(?=\nO\d+: |\Z)", block[1], re.DOTALL | re.MULTILINE) if block else []
    return dict(found)
