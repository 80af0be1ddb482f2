"""An HTTP/1.1 connection with little overhead, for one caller. load.py makes its calls."""

import socket
from collections.abc import Mapping

_RECEIVE_BYTES = 1 << 16
_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"


def request(host: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A whole POST request."""
    fields = {"host": host, "content-length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Connection:
    """One connection, with one call at a time."""

    def __init__(self, address: str, receive_seconds: float = 30.0) -> None:
        """`address` is host:port. Raises OSError if it cannot be reached."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), receive_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def call(self, whole_request: bytes) -> int:
        """Sends a request. Returns 0 as the stream, because HTTP/1.1 has no streams."""
        self.socket.sendall(whole_request)
        return 0

    def flush(self) -> None:
        """Does nothing: `call` has sent the request."""

    def receive(self) -> list[tuple[int, int]]:
        """Waits for data. Returns [] until the response is complete, then its stream and status.

        Raises ConnectionError at the end of the connection.
        """
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._received += data
        head, separator, body = self._received.partition(_END_OF_HEAD)
        if not separator or not _is_complete(head.lower(), body):
            return []
        self._received = b""
        return [(0, int(head.split(b" ", 2)[1]))]

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


def _is_complete(head: bytes, body: bytes) -> bool:
    """Whether the body is complete. `head` is in lower case."""
    _, field, length = head.partition(b"\r\ncontent-length:")
    if field:
        return len(body) >= int(length.split(b"\r\n", 1)[0])
    return body.endswith(_END_OF_CHUNKS)
