"""URLs of images: what they are taken apart into, what is refused, and what a configuration may say."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.serve.config import Config, Images, Limits, check_config, parse_config
from herder.serve.image_urls import NotAllowed, Target, described, read_target

ANY = Images(("*",))
SOME = Images(("pictures.example", "*.cdn.example"))


def test_targets() -> None:
    assert read_target("https://pictures.example/a/b.png?w=1&h=%20#top", ANY) == Target(
        "https", "pictures.example", 443, "/a/b.png?w=1&h=%20"
    )
    assert read_target("HTTPS://Pictures.EXAMPLE.", SOME) == Target("https", "pictures.example", 443, "/")
    assert read_target("https://a.b.cdn.example?x", SOME).path == "/?x"
    plain = Images(("*",), http=True, ports=(8443,))
    assert read_target("http://pictures.example/", plain).authority == "pictures.example"
    assert read_target("https://pictures.example:8443/", plain).authority == "pictures.example:8443"
    assert read_target("https://xn--bcher-kva.example/", ANY).host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "url",
    [
        # Not the scheme, not the port, not the host that is allowed.
        "http://pictures.example/", "ftp://pictures.example/", "file:///etc/passwd", "data:image/png;base64,AAAA",
        "gs://bucket/x.png", "//pictures.example/x", "/x.png", "", "x", "https:pictures.example", "https://",
        "https://pictures.example:80/", "https://pictures.example:8443/", "https://pictures.example:0/",
        "https://pictures.example:65536/", "https://pictures.example:-1/", "https://pictures.example:x/",
        "https://cdn.example/", "https://notcdn.example/", "https://evil.example/", "https://pictures.example.evil.org/",
        "https://evilpictures.example/",
        # Users, and what parsers take apart in different ways.
        "https://user@pictures.example/", "https://user:secret@pictures.example/", "https://pictures.example@evil.org/",
        "https://evil.org\\@pictures.example/", "https://evil.org%00.pictures.example/", "https://pictures.example\n/",
        "https://pictures.example/\r\nHost: evil.org", "https://pictures.example/a b", "https://pictures.example/\t",
        " https://pictures.example/", "https://pictures。example/", "https://pictures.example/ü",
        "https://ⓟictures.example/", "https://pictures.example:\uff14\uff14\uff13/", "https:///pictures.example/",
    ],
)  # fmt: skip
def test_not_allowed(url: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        read_target(url, SOME)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "1.2.3.0x4", "93.184.215.14",
        "[::1]", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "[2606:4700:4700::1111]", "localhost", "intranet",
        "localhost.", "a..example", ".example.org", "-a.example", "a-.example", "a." * 200 + "example", "*.example.org",
        "a" * 64 + ".example",
    ],
)  # fmt: skip
def test_addresses_and_local_names_are_no_hosts(host: str) -> None:
    with pytest.raises(NotAllowed):
        read_target(f"https://{host}/x.png", ANY)


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=40).map("https://pictures.example".__add__) | st.text())
def test_whatever_is_allowed_leads_to_its_host(url: str) -> None:
    """And nothing of it can end the request's line."""
    try:
        target = read_target(url, ANY)
    except NotAllowed:
        return
    assert (urlsplit(url).hostname or "").removesuffix(".") == target.host
    assert target.path.startswith("/") and target.path.isascii() and target.path.isprintable()
    assert not set(target.path + target.host) & set(' \\"<>^`{|}#')


@given(
    st.text(max_size=40) | st.sampled_from("/?#:@[]\\%.-").flatmap(lambda c: st.text(f"{c}/ahtps:.1").map(c.__add__))
)
def test_a_redirect_leads_to_an_allowed_host_or_nowhere(location: str) -> None:
    start = read_target("https://pictures.example/a/b.png", SOME)
    try:
        target = read_target(start.joined(location), SOME)
    except NotAllowed:
        return
    assert target.host == "pictures.example" or target.host.endswith(".cdn.example")
    assert (target.scheme, target.port) == ("https", 443)


def test_long_urls_are_not_allowed() -> None:
    with pytest.raises(NotAllowed, match="4096 characters"):
        read_target("https://pictures.example/" + "a" * 5000, ANY)


# The configuration ---------------------------------------------------------------------------------------------------
def test_a_configuration_may_name_hosts() -> None:
    document = {"images": {"hosts": ["pictures.example", "*.cdn.example"], "ports": [8443], "http": True}}
    config = parse_config({**document, "limits": {"image_urls": 3, "image_seconds": 2}})
    check_config(config)
    assert config.images == Images(("pictures.example", "*.cdn.example"), True, (8443,))
    assert (config.limits.image_urls, config.limits.image_seconds) == (3, 2.0)
    assert Config().images.hosts == () and Limits().image_urls == 16


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"hosts": ["http://pictures.example"]}, "images.hosts has 'http://pictures.example': must be a host"),
        ({"hosts": ["192.168.1.5"]}, "images.hosts has"),
        ({"hosts": ["localhost"]}, "images.hosts has"),
        ({"hosts": ["*.*.example"]}, "images.hosts has"),
        ({"hosts": ["a*.example.org"]}, "images.hosts has"),
        ({"hosts": [""]}, "images.hosts has"),
        ({"hosts": "*"}, "must be a list of texts"),
        ({"hosts": ["*"], "ports": ["443"]}, "must be a list of whole numbers"),
        ({"hosts": ["*"], "ports": [True]}, "must be a list of whole numbers"),
        ({"hosts": ["*"], "ports": [0]}, "images.ports has 0"),
        ({"hosts": ["*"], "http": "yes"}, "must be true or false"),
        ({"http": True}, "images.hosts is empty"),
        ({"host": ["*"]}, "images.host is not a key"),
    ],
)
def test_what_is_wrong_is_said(images: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(parse_config({"images": images}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_check_says_what_is_allowed() -> None:
    assert described(Images(), offline=False, most=16) == "images: none is fetched from URLs"
    assert "pictures.example, *.cdn.example by https, at most 16" in described(SOME, offline=False, most=16)
    assert "any public host by https and http, ports 8080 too" in described(
        Images(("*",), True, (8080,)), offline=False, most=16
    )
    assert "none" in described(SOME, offline=True, most=16)
