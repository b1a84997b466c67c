"""Conversations in strict turns: perhaps a system message, then user and assistant, one after the other.

What the formats share that came before roles had tokens of their own (Llama 2, Code Llama, Mistral V1, Llama Guard).
"""

from __future__ import annotations

from collections.abc import Sequence

from herder.chat.format import refuse_images, refuse_reasoning
from herder.chat.message import Message, Tool
from herder.core.errors import UsageError


def in_turns(messages: Sequence[Message], name: str) -> tuple[str | None, Sequence[Message]]:
    """The system message, if there is one, and the rest, of which every first is the user's and every second the
    assistant's. Raises UsageError, naming the format `name`, for any other order, tool calls, images and reasoning."""
    refuse_images(messages, name)
    refuse_reasoning(messages, name)
    system = messages[0].text if messages and messages[0].role == "system" else None
    first = 0 if system is None else 1
    for i, message in enumerate(messages[first:]):
        expected = "assistant" if i % 2 else "user"
        if message.role != expected:
            raise UsageError(
                f"messages[{first + i}].role is {message.role}: in the chat format {name} it must be {expected} there, "
                "user and assistant taking turns"
            )
        if message.tool_calls:
            raise UsageError(f"messages[{first + i}] has tool_calls: the chat format {name} has none, leave them out")
    if len(messages) == first:
        raise UsageError(f"there is no user's message: the chat format {name} needs one after the system message")
    return system, messages[first:]


def refuse_tools(tools: Sequence[Tool] | None, name: str) -> None:
    """Raises UsageError when there are tools."""
    if tools:
        raise UsageError(f"the chat format {name} has no place for tools: leave them out")


def refuse_tags(messages: Sequence[Message], tags: Sequence[str], name: str) -> None:
    """Raises UsageError for a message that spells one of the format's own tags, where those are text and not tokens."""
    for i, message in enumerate(messages):
        for tag in tags:
            if tag in message.text:
                raise UsageError(
                    f"messages[{i}] contains {tag}, with which the chat format {name} marks its turns: take it out"
                )


def refuse_answered(turns: Sequence[Message], name: str) -> None:
    """Raises UsageError when an answer is wanted and the last message is one."""
    if turns[-1].role == "assistant":
        raise UsageError(f"the last message is the assistant's: the chat format {name} answers a user's")
