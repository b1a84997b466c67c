"""What goes wrong on the way to an answer, as the Problem that a dialect encodes."""

from __future__ import annotations

from herder.core.errors import (
    ContextOverflow,
    HerderError,
    ModelFileError,
    ModelNotFound,
    NetworkError,
    NumericError,
    OutOfMemory,
    StorageError,
)
from herder.serve.dialect import Problem
from herder.serve.fields import FieldError

_UNAVAILABLE = (OutOfMemory, NetworkError, StorageError)
_INTERNAL = (ModelFileError, NumericError)


class Refusal(Exception):
    """A request that is not answered, and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: BaseException, request_id: str = "") -> Problem:
    """What to tell a client. The text of an error that is not the user's own stays here: it may quote somebody else's
    prompt or a path; the log has it under the request's id."""
    match error:
        case Refusal():
            return error.problem
        case FieldError():
            return Problem("invalid", str(error), error.field)
        case ContextOverflow():
            return Problem("invalid", str(error), code="context_length_exceeded")
        case ModelNotFound():
            return Problem("not_found", str(error), "model", "model_not_found")
        case HerderError() if isinstance(error, _UNAVAILABLE):
            return Problem("unavailable", str(error), retry_after=5.0)
        case HerderError() if not isinstance(error, _INTERNAL):
            return Problem("invalid", str(error))
        case HerderError():
            return Problem("internal", str(error))
    where = f": the server's log has it under request {request_id}" if request_id else ""
    return Problem("internal", f"internal error{where}")
