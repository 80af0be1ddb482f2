"""Hosts that a test can cut from each other: network namespaces, joined by a bridge.

Needs root and the program ip(8). Each host has a process that holds its namespace. When the test
dies, these processes die too, and the kernel removes the namespaces with everything in them. The
test itself is also a host.

A cut loses packets silently, as a broken switch does. Each sender has a permanent neighbour entry
(ip-neighbour(8)) for each receiver; during a cut, this entry contains an address that no host has.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.waiting import eventually

# The name of this process as a host.
TEST = "test"
# This range is reserved for benchmarks of networks (RFC 2544), so no real host uses it.
_PREFIX = "198.18"
_NO_HOST = "02:00:00:00:ff:ff"
_LIMIT_SECONDS = 10.0
_HOLDER = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity")


@cache
def refusal() -> str:
    """Returns why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(["probe"]):
            return ""
    except (OSError, RuntimeError) as error:
        return f"no network of namespaces can be made here: {error}"


def require() -> None:
    """Skips the test if this machine cannot have such hosts."""
    if reason := refusal():
        pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class _Host:
    # The process that holds the host's namespace.
    pid: int
    device: str
    address: str
    mac: str


class Network:
    """The hosts of a test, by name."""

    def __init__(self, hosts: dict[str, _Host]) -> None:
        self._hosts = hosts
        # The cuts in effect: pairs of a sender and a receiver.
        self._cut: set[tuple[str, str]] = set()

    def address(self, host: str) -> str:
        """Returns the address of a host."""
        return self._hosts[host].address

    def namespace(self, host: str) -> Path:
        """Returns the file of a host's network namespace, for setns(2)."""
        return _namespace(self._hosts[host].pid)

    def command(self, host: str, *command: str) -> list[str]:
        """Returns a command line that runs `command` on a host, in the same process."""
        return _within(self.namespace(host), *command)

    def cut(self, *ways: tuple[str, str]) -> None:
        """Loses all packets from each sender to its receiver, until `heal` is called."""
        self._cut |= set(ways)
        for sender in {sender for sender, _ in ways}:
            self._set(sender, [to for one, to in ways if one == sender])

    def heal(self, *ways: tuple[str, str]) -> None:
        """Ends the given cuts, or all cuts if none is given."""
        healed = set(ways) or set(self._cut)
        self._cut -= healed
        for sender in {sender for sender, _ in healed}:
            self._set(sender, [to for one, to in healed if one == sender])

    @contextmanager
    def parted(self, *ways: tuple[str, str]) -> Iterator[None]:
        """Cuts these pairs of sender and receiver inside the block, and heals them afterwards."""
        self.cut(*ways)
        try:
            yield
        finally:
            self.heal(*ways)

    def connect_all(self) -> None:
        """Lets every host reach every other host."""
        for sender in self._hosts:
            self._set(sender, [to for to in self._hosts if to != sender])

    def _set(self, sender: str, receivers: Sequence[str]) -> None:
        host = self._hosts[sender]
        lines = []
        for receiver in receivers:
            to = self._hosts[receiver]
            mac = _NO_HOST if (sender, receiver) in self._cut else to.mac
            lines.append(f"neigh replace {to.address} lladdr {mac} dev {host.device} nud permanent")
        _ip(_namespace(host.pid), *lines)


def both_ways(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Returns all pairs of sender and receiver between two groups of hosts."""
    return [*one_way(some, others), *one_way(others, some)]


def one_way(senders: Sequence[str], receivers: Sequence[str]) -> list[tuple[str, str]]:
    """Returns all pairs of a sender in the first group and a receiver in the second."""
    return [(sender, to) for sender in senders for to in receivers]


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Makes a network of new hosts with these names and of this process.

    Raises OSError, or RuntimeError with the output of ip(8), if the machine cannot have such a
    network.
    """
    with ExitStack() as stack:
        switch = stack.enter_context(_holder())
        _ip(_namespace(switch), "link add bridge type bridge", "link set bridge up")
        number = _connect_test(switch)
        hosts = {TEST: _host(number, 1, os.getpid(), _test_device(number))}
        for index, name in enumerate(names, 2):
            hosts[name] = _host(number, index, stack.enter_context(_holder()), "eth0")
            _plug(switch, f"port{index}", hosts[name].pid, "eth0")
        for host in hosts.values():
            _ip(
                _namespace(host.pid),
                f"link set {host.device} address {host.mac}",
                f"addr add {host.address}/24 dev {host.device}",
                "link set lo up",
                f"link set {host.device} up",
            )
        connected = Network(hosts)
        connected.connect_all()
        yield connected


@contextmanager
def _holder() -> Iterator[int]:
    """Runs a process that holds a new network namespace. Yields its id."""
    process = subprocess.Popen(_HOLDER)
    try:
        own = _namespace(os.getpid()).readlink()

        def has_namespace() -> bool:
            if process.poll() is not None:
                raise RuntimeError("unshare(1) made no network namespace")
            return _namespace(process.pid).readlink() != own

        eventually(has_namespace)
        yield process.pid
    finally:
        process.kill()
        process.wait(10)


def _host(number: int, index: int, pid: int, device: str) -> _Host:
    return _Host(pid, device, f"{_PREFIX}.{number}.{index}", f"02:00:00:00:00:{index:02x}")


def _test_device(number: int) -> str:
    return f"evershell{number}"


def _connect_test(switch: int) -> int:
    """Connects this process. Returns a number that no other such network of this machine has."""
    for number in range(256):
        try:
            # Raises RuntimeError if the device already exists.
            _plug(switch, "port1", os.getpid(), _test_device(number))
        except RuntimeError as error:
            if "exists" not in str(error):
                raise
        else:
            return number
    raise RuntimeError("this machine has too many networks of tests")


def _plug(switch: int, port: str, pid: int, device: str) -> None:
    """Makes a device for a host, and connects it to the switch."""
    _ip(
        _namespace(switch),
        f"link add {port} type veth peer name {device} netns {pid}",
        f"link set {port} master bridge up",
    )


def _namespace(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net")


def _within(namespace: Path, *command: str) -> list[str]:
    return ["nsenter", f"--net={namespace}", "--", *command]


def _ip(namespace: Path, *lines: str) -> None:
    """Runs commands of ip(8) in the namespace. Raises RuntimeError if one fails."""
    done = subprocess.run(
        _within(namespace, "ip", "-batch", "-"),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"ip failed with exit code {done.returncode}")
