"""An HTTP/1.1 connection that costs little, for calls with one caller a connection."""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.bench.load import Calls, collecting_no_garbage

_RECEIVE_BYTES = 1 << 16
_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"


def request(
    host: str, path: str, headers: dict[str, str], body: bytes = b"", method: str = "POST"
) -> bytes:
    """A whole request."""
    fields = {"host": host, "content-length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Connection:
    """One connection, with one call at a time."""

    def __init__(self, address: str, receive_seconds: float = 30.0) -> None:
        """`address` is host:port. Raises OSError if it cannot be reached."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), receive_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, whole_request: bytes) -> None:
        """Sends a request."""
        self.socket.sendall(whole_request)

    def receive(self) -> int | None:
        """Reads what has arrived. Returns the status if the response is complete."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._received += data
        head, found, body = self._received.partition(_END_OF_HEAD)
        if not found or not _is_complete(head.lower(), body):
            return None
        self._received = b""
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


def run(address: str, requests: Iterable[bytes], callers: int, seconds: float) -> Calls:
    """Makes calls for this time, or until there are no more requests.

    Each caller has a connection of its own, and makes its next call when its last one was answered.
    """
    latencies: list[int] = []
    statuses: Counter[int] = Counter()
    remaining = iter(requests)
    connections = [Connection(address) for _ in range(callers)]
    sent: dict[Connection, int] = {}
    try:
        with collecting_no_garbage(), selectors.DefaultSelector() as selector:
            for connection in connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            cpu_began, began = time.process_time(), time.perf_counter_ns()
            until = began + int(seconds * 1e9)
            for connection in connections:
                _send_next(connection, remaining, sent)
            while sent:
                for connection in _ready(selector, connections):
                    status = connection.receive()
                    if status is None:
                        continue
                    now = time.perf_counter_ns()
                    latencies.append(now - sent.pop(connection))
                    statuses[status] += 1
                    if now < until:
                        _send_next(connection, remaining, sent)
            taken = (time.perf_counter_ns() - began) / 1e9
            return Calls(latencies, statuses, taken, time.process_time() - cpu_began)
    finally:
        for connection in connections:
            connection.close()


def _ready(
    selector: selectors.BaseSelector, connections: Sequence[Connection]
) -> Sequence[Connection]:
    """The connections that have data. A single one is waited for by its own read."""
    if len(connections) == 1:
        return connections
    return [key.data for key, _ in selector.select()]


def _send_next(
    connection: Connection, requests: Iterable[bytes], sent: dict[Connection, int]
) -> None:
    following = next(iter(requests), None)
    if following is not None:
        sent[connection] = time.perf_counter_ns()
        connection.send(following)


def _is_complete(head: bytes, body: bytes) -> bool:
    """Whether the body is complete. `head` is in lower case."""
    _, found, length = head.partition(b"\r\ncontent-length:")
    if found:
        return len(body) >= int(length.split(b"\r\n", 1)[0])
    return body.endswith(_END_OF_CHUNKS)
