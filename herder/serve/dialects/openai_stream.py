"""What the answers of OpenAI's two APIs for text share: server-sent events, usage, numbers as JSON has them."""

from __future__ import annotations

import json
import math
from typing import Any

from herder.serve.wire import Answer, Done

CONTENT_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
NEVER = -9999.0  # the log-probability of what cannot be: JSON has no infinity, and OpenAI's clients know this number


def sse(value: Any) -> bytes:
    """One event. Text stays UTF-8: a lone surrogate cannot come out of a model, and what clients send was checked."""
    return b"data: " + dumps(value).encode() + b"\n\n"


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def logprob(value: float) -> float:
    return max(value, NEVER) if not math.isnan(value) else NEVER


def usage(done: Done) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
    }


def done_of(answer: Answer) -> Done:
    assert answer.done is not None, "an answer is encoded when it is complete"
    return answer.done
