"""Which IP addresses belong to the public Internet: the only ones that a URL in a request may lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries (RFC 6890 and what followed it), written out because ipaddress.is_global has said
# different things in different versions of Python.
_CLOSED_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; 0.0.0.0 reaches this machine
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT, and one cloud's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's metadata, at an address that is formally public
            "169.254.0.0/16",  # link-local, most clouds' metadata among it
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocols, one cloud's metadata among it
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)

# What is outside is loopback, private, link-local, multicast, or an IPv4 address in another form: mapped
# (::ffff:0:0/96) or for NAT64 (64:ff9b::/96), whose gateway might reach what this machine may not.
_OPEN_6 = IPv6Network("2000::/3")
_CLOSED_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: any IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)


def is_public(address: Address) -> bool:
    """Whether it is a unicast address of the public Internet that holds no other address in itself."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_4)
    return address in _OPEN_6 and not any(address in network for network in _CLOSED_6)
