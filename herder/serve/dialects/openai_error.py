"""Errors in OpenAI's shape, with the statuses that make its clients raise their own exception types."""

from __future__ import annotations

import math
from typing import Any

from herder.serve.dialect import Kind, Problem

# kind -> (HTTP status, type, code where the problem has none). A full server answers 429 as one that limits does: the
# clients wait for as long as Retry-After says and try again.
_KINDS: dict[Kind, tuple[int, str, str | None]] = {
    "invalid": (400, "invalid_request_error", None),
    "unauthorized": (401, "invalid_request_error", "invalid_api_key"),
    "forbidden": (403, "invalid_request_error", "insufficient_permissions"),
    "not_found": (404, "invalid_request_error", None),
    "too_large": (413, "invalid_request_error", "request_too_large"),
    "rate_limited": (429, "rate_limit_error", "rate_limit_exceeded"),
    "overloaded": (429, "rate_limit_error", "server_overloaded"),
    "timeout": (504, "server_error", "timeout"),
    "internal": (500, "server_error", None),
    "unavailable": (503, "server_error", "service_unavailable"),
}


def body(problem: Problem) -> dict[str, Any]:
    """What stands in the response, and in the event that ends a stream."""
    _, type_, code = _KINDS[problem.kind]
    return {
        "error": {"message": problem.message, "type": type_, "param": problem.field, "code": problem.code or code},
    }


def error(problem: Problem) -> tuple[int, dict[str, str], dict[str, Any]]:
    """HTTP status, headers, body."""
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.kind == "timeout":
        headers["x-should-retry"] = "false"  # the clients would repeat what the caller has no more time for
    if problem.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"  # RFC 9110 asks for it
    return _KINDS[problem.kind][0], headers, body(problem)
