"""What can go wrong, from the user's side.

Every error a user can cause is a `HerderError`: one line that says what is wrong, which value, and what to do about it.
The command line prints that line and exits with `exit_code`; the server turns it into the dialect's own error shape.
Mistakes of ours stay ordinary exceptions (AssertionError and friends) and keep their traceback.
"""


class HerderError(ValueError):
    """Base of every error whose cause lies in what the user gave us."""

    exit_code = 1


class UsageError(HerderError):
    """An option, argument or request field is wrong."""

    exit_code = 2


class ModelNotFound(HerderError):
    """No model under that name, path or hub id."""

    exit_code = 3


class ModelFileError(HerderError):
    """A model file is truncated, inconsistent, or holds something we do not read."""

    exit_code = 4


class UnsupportedModel(HerderError):
    """The file is fine, but this architecture, format or runtime combination is not supported."""

    exit_code = 4


class ContextOverflow(HerderError):
    """The prompt (plus what was asked to be generated) does not fit the context.

    Attributes: prompt_tokens, limit (both in tokens).
    """

    exit_code = 5

    def __init__(self, message: str, *, prompt_tokens: int, limit: int) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class NetworkError(HerderError):
    """A download failed, or the network is not allowed (`--offline`)."""

    exit_code = 6


class StorageError(HerderError):
    """The disk is full, a path is not writable, a checksum does not match."""

    exit_code = 7


class TemplateError(HerderError):
    """A chat template is broken, loops, or reaches for something outside its sandbox."""

    exit_code = 8


class NumericError(HerderError):
    """The forward pass produced NaN or infinity: the weights are damaged."""

    exit_code = 9


class OutOfMemory(HerderError):
    """The weights, the KV cache or the work space do not fit this machine."""

    exit_code = 10
