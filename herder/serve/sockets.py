"""The sockets that a server listens on, bound before any model is loaded"""

from __future__ import annotations

import errno
import socket

from herder.core.errors import UsageError
from herder.serve.config import Config

BACKLOG = 2048  # connections that wait to be accepted; the system may hold fewer (net.core.somaxconn)

# A name may have an address that this machine has not: localhost is ::1 too where IPv6 is switched off.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


Sockets = list[socket.socket]


def listen(config: Config) -> Sockets:
    """One socket for each address of the configured host (all of this machine's for an empty one), with the options of
    asyncio's servers. They listen, since bound alone they would not keep others from the port; connections wait until
    they are accepted. Port 0 becomes one free port, the same on each address. Raises UsageError."""
    sockets: Sockets = []
    port = config.port
    try:
        found = socket.getaddrinfo(config.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for at, (family, *_, address) in enumerate(found):
            try:
                # What follows the port in an IPv6 address says which link a link-local one is of.
                made = socket.create_server((address[0], port, *address[2:]), family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno in _NOT_HERE and (sockets or at + 1 < len(found)):
                    continue
                raise
            sockets.append(made)
            port = made.getsockname()[1]
    except OSError as error:
        for made in sockets:
            made.close()
        raise UsageError(f"{config.url} cannot be listened on: {_why(error, config)}") from None
    return sockets


def _why(error: OSError, config: Config) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken, perhaps by another server: choose another --port"
    if error.errno == errno.EACCES:
        return f"port {config.port} is for those with more rights: choose a --port from 1024 on"
    if isinstance(error, socket.gaierror) or error.errno in _NOT_HERE:
        return f"{config.host} is no address of this machine: choose another --host"
    return f"{error.strerror or error}: choose another --host or --port"
