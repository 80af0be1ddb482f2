"""Calls a server with a number of concurrent callers, and measures every call."""

import gc
import selectors
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from bench.figures import percentile


class Connection(Protocol):
    """A connection of `http1` or `http2`. It may keep calls until `flush` sends them."""

    socket: Any

    def call(self, body: bytes) -> int:
        """Makes a call. Returns the number of its stream."""

    def flush(self) -> None:
        """Sends all calls that have not been sent yet."""

    def receive(self) -> list[tuple[int, int]]:
        """Waits for data. Returns the streams that have ended, and the status of each."""

    def close(self) -> None:
        """Closes the connection."""


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """Turns off the garbage collector of this process inside the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Calls:
    """The measurements of all calls in one or more runs."""

    # The time from the sending of each call to its status, in nanoseconds.
    nanoseconds: Sequence[int]
    # Number of calls by status.
    statuses: Counter[int]
    # The time from the first call to the last answer.
    seconds: float
    # The processor time that the load generator itself used.
    own_cpu_seconds: float

    @property
    def count(self) -> int:
        return len(self.nanoseconds)

    def figures(self) -> dict[str, float]:
        """p50 and p99 in ms, and the calls per second and per CPU second of the load generator."""
        return {
            "p50": percentile(self.nanoseconds, 50) / 1e6,
            "p99": percentile(self.nanoseconds, 99) / 1e6,
            "per_second": self.count / self.seconds,
            "generator_per_cpu_second": self.count / self.own_cpu_seconds,
        }


def joined(parts: Sequence[Calls]) -> Calls:
    """The measurements of several runs as one."""
    return Calls(
        list(chain.from_iterable(each.nanoseconds for each in parts)),
        sum((each.statuses for each in parts), Counter()),
        sum(each.seconds for each in parts),
        sum(each.own_cpu_seconds for each in parts),
    )


def run(
    connections: Sequence[Connection], bodies: Iterable[bytes], callers: int, seconds: float
) -> Calls:
    """Makes calls for `seconds`, or until there are no more bodies.

    `callers` calls are in flight at any time, spread over the connections. Each caller makes its
    next call when its previous call is answered. The garbage collector is off.
    """
    latencies: list[int] = []
    statuses: Counter[int] = Counter()
    remaining = iter(bodies)
    sent: dict[tuple[int, int], int] = {}
    # A single connection needs no selector, because its `receive` blocks.
    selector = selectors.DefaultSelector() if len(connections) > 1 else None
    with collecting_no_garbage(), selector or nullcontext():
        if selector is not None:
            for index, connection in enumerate(connections):
                selector.register(connection.socket, selectors.EVENT_READ, index)
        cpu_began, began = time.process_time(), time.perf_counter_ns()
        until = began + int(seconds * 1e9)
        for number in range(callers):
            _call(connections, number % len(connections), remaining, sent)
        for connection in connections:
            connection.flush()
        while sent:
            for index in (0,) if selector is None else [key.data for key, _ in selector.select()]:
                connection = connections[index]
                ended = connection.receive()
                now = time.perf_counter_ns()
                for stream, status in ended:
                    latencies.append(now - sent.pop((index, stream)))
                    statuses[status] += 1
                    if now < until:
                        _call(connections, index, remaining, sent)
                connection.flush()
        taken = (time.perf_counter_ns() - began) / 1e9
        return Calls(latencies, statuses, taken, time.process_time() - cpu_began)


def _call(
    connections: Sequence[Connection],
    index: int,
    bodies: Iterator[bytes],
    sent: dict[tuple[int, int], int],
) -> None:
    body = next(bodies, None)
    if body is not None:
        sent[index, connections[index].call(body)] = time.perf_counter_ns()
