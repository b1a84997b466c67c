"""What every dialect parses into, and the events that it encodes: one request and one answer behind all APIs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from herder.chat.message import Message, Tool
from herder.core.request import Constraint as Constraint
from herder.core.request import TokenLogprob

Reason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Common:
    """What requests for text have in common.

    model: the name the client used (an alias, perhaps). options: what herder.llm.Options names (temperature, top_p,
    max_tokens, stop, seed, logprobs, logit_bias, ...), only what the client gave. n: answers wanted.
    stream_usage: whether a stream reports the usage in an event of its own. truncate: a prompt over the window loses
    its oldest part, and the answer says how much; otherwise it is refused with the numbers.
    deadline: seconds after which the answer ends with what there is (reason "length"), None without one.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    stream: bool = False
    stream_usage: bool = False
    constraint: Constraint | None = None
    truncate: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Common):
    """tool_choice: "auto", "none", "required", or the name of the one function that must be called, as a Named.
    reasoning: False leaves it out of the answer. spare_reasoning: that of earlier turns is no error where the chat
    format has no place for it."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | Named = "auto"
    parallel_tool_calls: bool = True
    reasoning: bool = True
    spare_reasoning: bool = False
    format_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest(Common):
    """Plain continuation. prompts: texts, or token ids as they are. suffix: what stands behind the gap (models with
    infill only). echo: the prompt comes back before the answer, with its log-probabilities if they are asked for."""

    prompts: tuple[str | tuple[int, ...], ...]
    suffix: str | None = None
    echo: bool = False


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """dimensions: None, or how many leading values to keep (renormalised)."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = False


# The answer, as it comes ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Started:
    """First event. truncated: prompt tokens that were left out (Common.truncate). unenforced: what the tools' schemas
    say and their calls are not held to, as TOOL.PATH.KEYWORD."""

    prompt_tokens: int
    cached_tokens: int = 0
    truncated: int = 0
    unenforced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """logprobs: of the tokens that this text came from, when asked for. A delta may carry logprobs without text."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A tool call begins. call: 0, 1, ... within the choice. id: ours, unique."""

    choice: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further piece of the call's arguments; all pieces of a call joined are one JSON object."""

    choice: int
    call: int
    json: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice has ended. stop: the stop string, or the spelling of the stop token, that ended it."""

    choice: int
    reason: Reason
    stop: str | None
    tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Done:
    """Last event. seconds: as core.request.Timings; of the slowest choice."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    queue: float
    prefill: float
    decode: float


AnswerEvent = Started | TextDelta | ReasoningDelta | CallStarted | CallArguments | Ended | Done


# The answer, whole ---------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Call:
    id: str
    name: str
    arguments: str = ""  # JSON


@dataclass(slots=True)
class Choice:
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Reason = "stop"
    stop: str | None = None
    tokens: int = 0
    seed: int = 0


@dataclass(slots=True)
class Answer:
    """The events of an answer, put together: what a dialect encodes when nothing is streamed."""

    choices: list[Choice]
    started: Started | None = None
    done: Done | None = None

    def feed(self, event: AnswerEvent) -> None:
        match event:
            case Started():
                self.started = event
            case Done():
                self.done = event
            case TextDelta(choice, text, logprobs):
                self.choices[choice].text += text
                self.choices[choice].logprobs += logprobs
            case ReasoningDelta(choice, text):
                self.choices[choice].reasoning += text
            case CallStarted(choice, _, id, name):
                self.choices[choice].calls.append(Call(id, name))
            case CallArguments(choice, call, json):
                self.choices[choice].calls[call].arguments += json
            case Ended(choice, reason, stop, tokens, seed):
                done = self.choices[choice]
                done.reason, done.stop, done.tokens, done.seed = reason, stop, tokens, seed
