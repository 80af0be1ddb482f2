"""Which addresses of agents and of webhook receivers the service may call."""

import ipaddress
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 networks whose addresses contain an IPv4 address: IPv4-compatible and IPv4-mapped (RFC 4291),
# IPv4-translated (RFC 2765), NAT64 (RFC 6052, RFC 8215), Teredo (RFC 4380) and 6to4 (RFC 3056).
_CONTAIN_IPV4 = (
    "::/96",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2001::/32",
    "2002::/16",
)
# The addresses at which Alibaba, Azure, Oracle, AWS and Google (in this order) offer credentials or
# control to each of their machines. Other clouds use a link-local address.
_OF_MACHINE = (
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
    "fd20:ce::/32",
)
# Networks in the IANA special-purpose address registries for which `is_global` may still be true:
# protocol assignments, AS112, automatic multicast tunneling, 6to4 relays, documentation.
_SPECIAL = (
    "192.0.0.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.175.48.0/24",
    "2001::/23",
    "2620:4f:8000::/48",
    "3fff::/20",
)
_LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_NO_HOST = tuple(map(ipaddress.ip_network, (*_CONTAIN_IPV4, *_OF_MACHINE)))
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, _SPECIAL))
# The IPv6 addresses that are routed on the internet (RFC 4291, section 2.4).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def is_loopback(address: Address) -> bool:
    """Whether this is a loopback address. False for an IPv6 address that contains an IPv4 one."""
    return _is_in(address, _LOOPBACK)


def is_host(address: Address) -> bool:
    """Whether the address may belong to a pod or to a receiver of webhooks. It may be private.

    False for loopback, link-local, multicast and unspecified addresses, for addresses at which a
    cloud serves credentials, and for IPv6 addresses that contain an IPv4 address.
    """
    if address.is_loopback or address.is_link_local or address.is_multicast:
        return False
    return not address.is_unspecified and not _is_in(address, _NO_HOST)


def is_public(address: Address) -> bool:
    """Whether the address may belong to a host on the internet."""
    if not is_host(address) or not address.is_global or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return not _is_in(address, _NOT_PUBLIC)


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    # `in` is False if the address and the network have different IP versions.
    return any(address in network for network in networks)
