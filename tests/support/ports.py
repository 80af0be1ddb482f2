"""Ports for the servers of tests."""

import random
import socket
from pathlib import Path

# Not the module's own, which others seed: two runs at once are to look in different places.
_random = random.SystemRandom()


def free_ports(count: int, in_a_row: int = 2) -> list[int]:
    """Ports nobody listens on; of several, the last ones follow each other.

    None of those that the kernel gives to connections: such a one may be taken again before it is
    listened on.
    """
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    alone = max(0, count - in_a_row)
    while True:
        first = _random.randrange(10_000, below - in_a_row)
        ports = [*_random.sample(range(10_000, below), alone), *range(first, first + count - alone)]
        if len(set(ports)) == count and all(_is_free(port) for port in ports):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
