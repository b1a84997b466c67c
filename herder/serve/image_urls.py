"""URLs of images in requests: taken apart strictly, and held against what the configuration allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from herder.core.errors import UsageError
from herder.serve.config import Images

MAX_URL = 4096  # characters
DEFAULT_PORTS = {"https": 443, "http": 80}

# RFC 3986, without the characters that parsers have disagreed about.
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*", re.ASCII)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:{_LABEL}\.)+(?![0-9]){_LABEL}", re.ASCII)
_PATTERN = re.compile(rf"\*|(?:\*\.)?{_HOST.pattern}", re.ASCII)


class NotAllowed(Exception):
    """A URL that nothing is fetched from. Its text says why, to whoever wrote the URL."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. host: a DNS name in lower case, never an address. path: with the query, no fragment."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    def joined(self, location: str) -> str:
        """The URL that a redirect from here names. Raises NotAllowed."""
        try:
            return urljoin(f"{self.scheme}://{self.authority}{self.path}", location)
        except ValueError:
            raise NotAllowed("redirects to what is no URL") from None


def read_target(url: str, allowed: Images) -> Target:
    """Raises NotAllowed, whose text goes behind the field's name and quotes nothing but the host."""
    if len(url) > MAX_URL:
        raise NotAllowed(f"is a URL of more than {MAX_URL} characters: send the image itself, as base64")
    if not _URL.fullmatch(url):
        raise NotAllowed("has a character that no URL has: percent-encode it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise NotAllowed("is no URL: expected https://HOST/PATH") from None
    schemes = ("https", "http") if allowed.http else ("https",)
    if parts.scheme not in schemes:
        raise NotAllowed(f"is no URL of {' or '.join(schemes)}: send the image itself, as base64")
    if "@" in parts.netloc:
        raise NotAllowed("is a URL with a user name: images are fetched without")
    host = (parts.hostname or "").removesuffix(".")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise NotAllowed("is a URL without a host's full name: addresses and local names are not fetched from")
    if not any(_matches(host, pattern.lower()) for pattern in allowed.hosts):
        raise NotAllowed(f"names {host}, which this server does not fetch images from: send it as base64")
    if port is None:
        port = DEFAULT_PORTS[parts.scheme]
    if port not in {DEFAULT_PORTS[scheme] for scheme in schemes} | set(allowed.ports):
        raise NotAllowed(f"names port {port}, which this server does not fetch images from: send it as base64")
    return Target(parts.scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def check_images(allowed: Images) -> None:
    """Raises UsageError for a host or a port that can mean nothing."""
    for pattern in allowed.hosts:
        if not _PATTERN.fullmatch(pattern.lower()):
            raise UsageError(
                f"images.hosts has {pattern!r}: must be a host's full name, *.NAME for all names below it, or * for any"
            )
    for port in allowed.ports:
        if not 0 < port < 65536:
            raise UsageError(f"images.ports has {port}: must be between 1 and 65535")
    if (allowed.http or allowed.ports) and not allowed.hosts:
        raise UsageError("images.hosts is empty, so images.http and images.ports say nothing: name hosts")


def described(allowed: Images, *, offline: bool, most: int) -> str:
    """A line for a person. most: URLs of one request."""
    if not allowed.hosts:
        return "images: none is fetched from URLs"
    hosts = "any public host" if "*" in allowed.hosts else ", ".join(allowed.hosts)
    if offline:
        return f"images: none is fetched from URLs, though {hosts} may be, because the server is offline"
    schemes = "https and http" if allowed.http else "https"
    ports = f", ports {', '.join(map(str, allowed.ports))} too" if allowed.ports else ""
    return f"images: fetched from {hosts} by {schemes}{ports}, at most {most} a request; private addresses never"


def _matches(host: str, pattern: str) -> bool:
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
