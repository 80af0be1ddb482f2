"""A gRPC connection with little overhead: HTTP/2 frames over a plain socket.

All calls of a connection have the same method, and most have the same metadata as the previous
call. So the header block is encoded again only when the metadata changes. The server is asked not
to index its own headers, so each block of trailers can be read by itself. A gRPC client for Python
would reach its own limit before the servers reach theirs.

Frames follow RFC 9113, and messages follow the protocol of gRPC over HTTP/2.
"""

import socket
import struct
from collections.abc import Sequence

from hpack import Decoder, Encoder

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
# The header of a frame: its length (in two parts), type, flags and stream.
_FRAME = struct.Struct(">HBBBI")
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
_MAX_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_RECEIVE_BYTES = 1 << 18
_CANCEL = 8
# Stands for a stream that the server has reset. It is not a gRPC status.
RESET = -1

Ended = tuple[int, int]


def message(payload: bytes) -> bytes:
    """The payload with the prefix of a gRPC message."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    length = len(payload)
    return _FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


class Connection:
    """One connection for calls of one method with one credential. Not thread-safe."""

    def __init__(
        self,
        address: str,
        path: str,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        receive_seconds: float = 30.0,
        content_type: str = "application/grpc",
    ) -> None:
        """`address` is host:port. Raises OSError if it cannot be reached."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), receive_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", content_type),
        ]
        self._encoder = Encoder()
        self.set_metadata(metadata)
        self._next_stream = 1
        self._send_window = _DEFAULT_WINDOW
        # The data frames that wait for room in the connection's flow-control window.
        self._held: list[tuple[bytes, int]] = []
        self._received = b""
        self._statuses: dict[bytes, int] = {}
        # The frames to send at the next `flush`.
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _MAX_WINDOW)
        room = struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW)
        self._unsent = [
            _PREFACE,
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW_UPDATE, 0, 0, room),
        ]
        # The data of each stream for which `collect` was called.
        self.collected: dict[int, bytearray] = {}

    def set_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Sets the metadata of all further calls."""
        self._metadata = metadata
        # The header block of each call with this metadata, except for the first one.
        self._block: bytes | None = None

    def call(self, body: bytes, trailers: Sequence[tuple[str, str | bytes]] = ()) -> int:
        """Adds a call to the next `flush`. Returns the number of its stream.

        `body` is a result of the function `message`.
        """
        stream = self._next_stream
        self._next_stream += 2
        data = _frame(_DATA, 0 if trailers else _END_STREAM, stream, body)
        self._unsent.append(_frame(_HEADERS, _END_HEADERS, stream, self._header_block()))
        if trailers:
            # Trailers change the server's header table, so the next call needs a new header block.
            block, self._block = self._encoder.encode(trailers), None
            data += _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, block)
        if self._held or self._send_window < len(body):
            self._held.append((data, len(body)))
        else:
            self._send_window -= len(body)
            self._unsent.append(data)
        return stream

    def _header_block(self) -> bytes:
        if self._block is not None:
            return self._block
        fields = [*self._fields, *self._metadata]
        # The first block puts the fields into the server's header table. The blocks of later calls
        # refer to that table.
        first = self._encoder.encode(fields)
        self._block = self._encoder.encode(fields)
        return first

    def collect(self, stream: int) -> bytearray:
        """Returns a buffer, to which all further data of the stream is added."""
        return self.collected.setdefault(stream, bytearray())

    def cancel(self, stream: int) -> None:
        """Ends a stream early, at the next `flush`."""
        self.collected.pop(stream, None)
        self._unsent.append(_frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))

    def flush(self) -> None:
        """Sends the waiting frames at once, except data for which the window has no room."""
        if self._unsent:
            self.socket.sendall(b"".join(self._unsent))
            self._unsent.clear()

    def receive(self) -> list[Ended]:
        """Waits for data. Returns the streams that have ended, with their gRPC status or RESET.

        Raises OSError if the connection breaks or nothing arrives for `receive_seconds`.
        """
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server has closed the connection")
        if self._received:
            data = self._received + data
        ended: list[Ended] = []
        position, size = 0, len(data)
        while size - position >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            end = position + _FRAME.size + (high << 8 | low)
            if end > size:
                break
            if kind == _HEADERS:
                if flags & _END_STREAM:
                    ended.append((stream, self._status(data[position + _FRAME.size : end])))
            elif kind == _DATA:
                if self.collected and stream in self.collected:
                    self.collected[stream] += data[position + _FRAME.size : end]
            else:
                self._control(kind, flags, stream, data[position + _FRAME.size : end], ended)
            position = end
        self._received = data[position:]
        return ended

    def close(self) -> None:
        """Closes the connection. Calls in flight are cancelled."""
        self.socket.close()

    def _control(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[Ended]
    ) -> None:
        if kind == _WINDOW_UPDATE and stream == 0:
            self._send_window += int.from_bytes(payload, "big")
            self._send_held()
        elif kind in (_PING, _SETTINGS) and not flags & _ACK:
            answer = payload if kind == _PING else b""
            self._unsent.append(_frame(kind, _ACK, 0, answer))
            self.flush()
        elif kind == _RST_STREAM:
            ended.append((stream, RESET))
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server closes the connection: {payload[8:]!r}")

    def _send_held(self) -> None:
        while self._held and self._send_window >= self._held[0][1]:
            data, length = self._held.pop(0)
            self._send_window -= length
            self._unsent.append(data)
        self.flush()

    def _status(self, block: bytes) -> int:
        """The gRPC status in a block of trailers.

        The statuses of up to 100 blocks are kept, and the blocks of successful calls are equal. The
        block of an error contains the request id, so it is new each time. Its status is therefore
        first searched for in the bytes, which is faster than decoding the block.
        """
        status = self._statuses.get(block)
        if status is None:
            status = _literal_status(block)
            if status is None:
                fields = dict(Decoder().decode(block, raw=True))
                status = int(fields[b"grpc-status"])
            if len(self._statuses) < 100:
                self._statuses[block] = status
        return status


def _literal_status(block: bytes) -> int | None:
    """The status in a block of trailers; None if the block does not have it as plain text."""
    _, found, rest = block.partition(b"\x0bgrpc-status")
    if not found or not 1 <= rest[0] <= 2:
        return None
    digits = rest[1 : 1 + rest[0]]
    return int(digits) if digits.isdigit() else None
