"""The files of TLS: that they are there, belong together, and that nobody else reads the key."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from herder.core.errors import StorageError, UsageError

if TYPE_CHECKING:
    from herder.serve.config import Config


def check_tls(config: Config) -> None:
    """Does nothing without TLS. Raises StorageError for a file that cannot be read, or a key that others can read;
    UsageError for files that are no certificate and its key."""
    if config.tls_certificate is None or config.tls_key is None:
        return
    for path in (config.tls_certificate, config.tls_key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None
    mode = stat.S_IMODE(os.stat(config.tls_key).st_mode)
    if mode & 0o027 and os.name == "posix":  # a group may read: certificate tools give their keys to one
        raise StorageError(f"{config.tls_key} can be reached by others (mode {mode:04o}): `chmod 640 {config.tls_key}`")
    import uvicorn

    probe = uvicorn.Config(
        _nothing, ssl_certfile=config.tls_certificate, ssl_keyfile=config.tls_key, log_config=None, lifespan="off"
    )
    try:
        probe.load()
    except OSError as error:  # ssl.SSLError is one
        message = f"{config.tls_certificate} and {config.tls_key} are not a PEM certificate and its key: {error}"
        raise UsageError(message) from None


async def _nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nothing is served by it")
