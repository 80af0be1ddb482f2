"""Ports for the servers of tests."""

import os
import random
import socket
from pathlib import Path

# A generator that other code cannot seed. With the same seed, several test runs would choose the
# same ports.
_random = random.SystemRandom()
# The ports that `free_ports` has returned in this process. Servers may not listen on them yet.
_given: set[int] = set()


def free_ports(count: int, in_a_row: int = 2, distance: int = 0) -> list[int]:
    """Returns free ports. The last `in_a_row` of them are consecutive.

    With `distance`, the ports that come so far after these are free too.

    The ports are below the ephemeral range, so the kernel cannot give them to connections before a
    server listens on them. Each worker of pytest-xdist has its own range of ports. Otherwise, two
    workers could choose the same port before a server listens on it.
    """
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % workers
    size = (below - 10_000) // workers
    own = range(10_000 + worker * size, 10_000 + (worker + 1) * size)
    scattered = max(0, count - in_a_row)
    while True:
        first = _random.choice(own[: -in_a_row - distance])
        row = range(first, first + count - scattered)
        ports = [*_random.sample(own, scattered), *row]
        wanted = {*ports, *(port + distance for port in row)}
        is_distinct = len(wanted) == count + (len(row) if distance else 0)
        if is_distinct and not wanted & _given and all(map(_is_free, wanted)):
            _given.update(wanted)
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
