"""Which addresses are public: held against Python's ipaddress, and against the addresses that attackers try."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from herder.serve.addresses import is_public

FOUR = st.integers(0, 2**32 - 1).map(IPv4Address)
SIX = st.integers(0, 2**128 - 1).map(IPv6Address)
# Near the edges of every registered block, where a wrong mask shows.
EDGES = ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"]
EDGES += ["192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4"]
EDGES += ["240.0.0.0/4", "255.255.255.255/32"]


@given(FOUR)
@example(IPv4Address("100.63.255.255"))
@example(IPv4Address("100.128.0.0"))
@example(IPv4Address("223.255.255.255"))
def test_ipv4_as_python_has_it(address: IPv4Address) -> None:
    """Stricter in two blocks: the relays of 6to4, and a cloud's metadata at a formally public address."""
    strict = address in IPv4Network("192.88.99.0/24") or address == IPv4Address("168.63.129.16")
    reachable = address.is_global and not address.is_multicast
    if str(address) in ("192.0.0.9", "192.0.0.10"):  # anycast inside a block that is closed here
        reachable = False
    assert is_public(address) == (reachable and not strict)


@given(SIX | st.integers(2**125, 2**126 - 1).map(IPv6Address))
def test_ipv6_is_never_laxer_than_python(address: IPv6Address) -> None:
    if is_public(address):
        assert address.is_global and not address.is_multicast and address.ipv4_mapped is None
        assert address.sixtofour is None and address.teredo is None


@given(FOUR)
def test_addresses_inside_others_are_not_public(inner: IPv4Address) -> None:
    """Not even public ones: who translates them is not known."""
    four = int(inner)
    held = {
        "mapped": 0xFFFF << 32 | four,
        "compatible": four,
        "translated": 0xFFFF << 48 | four,
        "NAT64": 0x0064FF9B << 96 | four,
        "NAT64 here": 0x0064FF9B0001 << 80 | four,
        "6to4": 0x2002 << 112 | four << 80 | 1,
        "Teredo": 0x20010000 << 96 | 0x4136E378 << 64 | (four ^ 0xFFFFFFFF),
        "Teredo's server": 0x20010000 << 96 | four << 64,
        "ISATAP": 0xFE80 << 112 | 0x5EFE << 32 | four,
    }
    assert [name for name, value in held.items() if is_public(IPv6Address(value))] == []


@pytest.mark.parametrize("block", EDGES)
def test_whole_blocks_are_closed(block: str) -> None:
    network = IPv4Network(block)
    assert not is_public(network[0]) and not is_public(network[-1])


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "127.0.0.1", "127.255.255.254", "169.254.169.254", "100.100.100.200", "192.0.0.192",
        "168.63.129.16", "255.255.255.255", "224.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "fd20:ce::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:93.184.215.14", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1", "100::1", "5f00::1",
        "4000::1",
    ],
)  # fmt: skip
def test_closed(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_open(text: str) -> None:
    assert is_public(ip_address(text))
