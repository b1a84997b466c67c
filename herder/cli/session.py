"""A conversation and the model that answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from herder.cli.conversation import Conversation
from herder.cli.generation import start_chat
from herder.cli.images import image_part
from herder.core.errors import UsageError
from herder.core.sizes import count_text

if TYPE_CHECKING:
    from herder.completion import Completion, CompletionStream
    from herder.llm import LLM

Opener = Callable[[str], "AbstractContextManager[LLM]"]


class Session:
    """A context; the model is loaded on entering and freed on leaving.

    stop: texts that end an answer. last: the answer before, None before the first. used: tokens of the context that the
    conversation fills, as far as the last answer told. images: parts of the next message, which come before its text.
    """

    def __init__(self, conversation: Conversation, opener: Opener, stop: Sequence[str] = ()) -> None:
        self.conversation = conversation
        self.last: Completion | None = None
        self.used = 0
        self.images: list[dict[str, Any]] = []
        self._opener = opener
        self._stop = tuple(stop)
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        self.llm = self._stack.enter_context(self._opener(self.conversation.model))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def title(self) -> str:
        size = count_text(self.llm.config.parameters)
        return f"{self.conversation.model} ({size} parameters, context {self.llm.context} tokens)"

    @property
    def meter(self) -> str:
        """How full the context is."""
        return f"context {self.used} of {self.llm.context} ({100 * self.used // self.llm.context} %)"

    def ask(self, text: str) -> CompletionStream:
        """Starts the answer to text. The conversation changes only with keep()."""
        messages = [*self.conversation.prompt(), {"role": "user", "content": self._content(text)}]
        options = dict(self.conversation.settings) | {"stop": self._stop}
        return start_chat(self.llm, self.conversation.model, messages, options)

    def keep(self, text: str, completion: Completion) -> None:
        """Adds a turn to the conversation; what the model thought before it answered is no part of it."""
        message = completion.message
        said = completion.text if message is None or message.reasoning is None else message.text
        self.conversation.messages += [
            {"role": "user", "content": self._content(text)},
            {"role": "assistant", "content": said},
        ]
        self.images = []
        self.last = completion
        self.used = completion.usage.prompt_tokens + completion.usage.completion_tokens

    def take_back(self) -> str:
        """Removes the last turn and returns what the user had said. Raises UsageError when nothing was said."""
        messages = self.conversation.messages
        if len(messages) < 2:
            raise UsageError("nothing was answered yet")
        del messages[-1]
        content: str | list[dict[str, Any]] = messages.pop()["content"]
        if isinstance(content, str):
            return content
        self.images = [part for part in content if part["type"] != "text"]
        return "".join([part["text"] for part in content if part["type"] == "text"])

    def attach(self, path: str) -> None:
        """Adds an image to the next message. Raises UsageError for a file that is none, or a model that cannot see."""
        if not self.llm.sees:
            name = self.conversation.model
            raise UsageError(f"{name} takes no images as it is loaded: only vision models do, with --runtime torch")
        self.images.append(image_part(path))

    def _content(self, text: str) -> str | list[dict[str, Any]]:
        return [*self.images, {"type": "text", "text": text}] if self.images else text

    def clear(self) -> None:
        self.conversation.messages.clear()
        self.images = []
        self.used = 0

    def replace(self, conversation: Conversation) -> None:
        """Goes on with another conversation, under the model it names."""
        if conversation.model != self.conversation.model:
            self.switch(conversation.model)
        self.conversation = conversation
        self.used = 0

    def switch(self, model: str) -> None:
        """Answers with another model from now on; with the old one again if the new one cannot be loaded.

        The old one is freed first: two at once may not fit.
        """
        old = self.conversation.model
        self._stack.close()
        try:
            self.llm = self._stack.enter_context(self._opener(model))
        except BaseException:
            self.llm = self._stack.enter_context(self._opener(old))
            raise
        self.conversation.model = model
        self.used = 0
