"""Floods a server with calls that use up memory.

The flood sends raw bytes to save processor time, because it runs on the same machine as the server.
It runs in a separate process so that it does not slow down the good callers of a test. The process
prints one line when it starts and one when the flood is complete. It stops when its input ends, and
then prints the results as JSON.
"""

import json
import select
import selectors
import socket
import struct
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle

import hpack

HELD_STREAMS = 300
RESETTING_CONNECTIONS, RESETS = 6, 5_000
BAD_CREDENTIALS = 1_000
UNKNOWN_KEY = "sk_" + "unknown_" * 6
_MESSAGE_BYTES = 4 * 1024 * 1024
_OWN_MESSAGE_BYTES = 1024 * 1024
_CANCEL = "/evershell.workspace.v1.WorkspaceService/CancelTask"
# The body of a valid request: as JSON, and as a gRPC message with its prefix.
_OVER_REST, _OVER_GRPC = b"{}", struct.pack(">BI", 0, 6) + b"\n\4ws_1"
# How many calls a connection sends and resets at once, and after how many calls it is closed. A
# connection is closed early because the server counts the resets of each connection.
_RESETS_AT_ONCE, _RESETS_OF_CONNECTION = 20, 240
# How many calls with bad credentials are in flight on each connection.
_BAD_IN_FLIGHT = 10
# The pause between two rounds of calls.
_PAUSE_SECONDS = 0.5

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_MAX_STREAMS, _INITIAL_WINDOW = 3, 4
_CANCELLED = 8
_FRAME_BYTES = 16_384

Told = Counter[str]


def _encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).decode().rstrip("=")


# A token that names the demo's signing key but has a wrong signature.
_HEADER, _CLAIMS = b'{"alg":"ES256","kid":"demo"}', b'{"sub":"user_owner","org_id":"org_demo"}'
WRONG_SIGNATURE = ".".join(map(_encoded, (_HEADER, _CLAIMS, bytes(range(64)))))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encodes an HTTP/2 frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class Connection:
    """An HTTP/2 connection whose streams all send the same body, subject to flow control."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        body: bytes,
        told: Told,
        *,
        ends: bool,
        token: str = "",
        content_type: str = "application/grpc",
    ) -> None:
        """Connects to the server. If `ends` is set, the body ends the stream."""
        self._body, self._last_flags, self._told = body, _END_STREAM if ends else 0, told
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        fields |= {"te": "trailers", "content-type": content_type}
        fields |= {"authorization": f"Bearer {token}"} if token else {}
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        self._headers = encoder.encode(list(fields.items()), huffman=False)
        self._window = self._initial_window = 65_535
        self.max_streams = 0
        self._next = 1
        # The flow-control window of each open stream, in bytes.
        self.windows: dict[int, int] = {}
        # The number of bytes of the body that each stream has sent.
        self._sent: dict[int, int] = {}
        self._output, self._input = bytearray(_PREFACE + frame(_SETTINGS, 0, 0)), b""
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)

    def open(self, count: int) -> None:
        """Opens `count` streams."""
        for _ in range(count):
            self._output += frame(_HEADERS, _END_HEADERS, self._next, self._headers)
            self.windows[self._next], self._sent[self._next] = self._initial_window, 0
            self._next += 2
        self._told["opened"] += count

    def reset(self, count: int) -> None:
        """Opens `count` streams and resets them.

        Every second stream sends its body before the reset.
        """
        for number in range(count):
            self._output += frame(_HEADERS, _END_HEADERS, self._next, self._headers)
            if number % 2:
                self._output += frame(_DATA, _END_STREAM, self._next, self._body)
            self._output += frame(_RESET, 0, self._next, struct.pack(">I", _CANCELLED))
            self._next += 2
        self._told["opened"] += count

    @property
    def is_idle(self) -> bool:
        """Whether all queued data has been sent."""
        return not self._output

    def step(self) -> None:
        """Reads available data and sends what flow control permits.

        Raises OSError if the connection is closed.
        """
        with suppress(BlockingIOError):
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionResetError
            self._read(data)
        if not self._output:
            self._fill()
        with suppress(BlockingIOError):
            del self._output[: self.socket.send(self._output)]

    def _fill(self) -> None:
        for stream in list(self.windows):
            sent = self._sent[stream]
            size = min(_FRAME_BYTES, self.windows[stream], self._window, len(self._body) - sent)
            if size <= 0:
                continue
            flags = self._last_flags if sent + size == len(self._body) else 0
            self._output += frame(_DATA, flags, stream, self._body[sent : sent + size])
            self._sent[stream] += size
            self.windows[stream] -= size
            self._window -= size
            self._told["bytes"] += size
            if len(self._output) > 1 << 20:
                return

    def _read(self, data: bytes) -> None:
        self._input += data
        at = 0
        while len(self._input) >= at + 9:
            first, flags, stream = struct.unpack_from(">IBI", self._input, at)
            end = at + 9 + (first >> 8)
            if len(self._input) < end:
                break
            self._take(first & 255, flags, stream, self._input[at + 9 : end])
            at = end
        self._input = self._input[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE and stream in self.windows:
            self.windows[stream] += int.from_bytes(payload, "big")
        elif kind == _WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == _SETTINGS and not flags & _ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            self.max_streams = settings.get(_MAX_STREAMS, 1000)
            more = settings.get(_INITIAL_WINDOW, self._initial_window) - self._initial_window
            self._initial_window += more
            self.windows = {each: window + more for each, window in self.windows.items()}
            self._output += frame(_SETTINGS, _ACK, 0)
        elif kind == _PING and not flags & _ACK:
            self._output += frame(_PING, _ACK, 0, payload)
        elif kind == _RESET or (kind in (_HEADERS, _DATA) and flags & _END_STREAM):
            self._told["ended"] += self.windows.pop(stream, None) is not None


def hold_messages(address: tuple[str, int], told: Told, token: str) -> Iterator[None]:
    """Opens streams on one connection and sends all but the last byte of each message.

    When all streams have ended, it opens new ones.
    """
    method, size = ("SubmitTask", _OWN_MESSAGE_BYTES) if token else ("CancelTask", _MESSAGE_BYTES)
    path = _CANCEL.replace("CancelTask", method)
    body = struct.pack(">BI", 0, size) + bytes(size - 1)
    connection = Connection(address, path, body, told, ends=False, token=token)
    next_round = time.monotonic()
    while True:
        connection.step()
        if connection.max_streams and not connection.windows and time.monotonic() > next_round:
            connection.open(min(HELD_STREAMS, connection.max_streams))
            next_round = time.monotonic() + _PAUSE_SECONDS
        yield


def reset_over_grpc(address: tuple[str, int], told: Told, token: str) -> Iterator[None]:
    """Opens and resets gRPC calls: without a credential, with an unknown key, and with `token`."""
    credentials = cycle(("", UNKNOWN_KEY, token))
    return _reset(
        lambda: Connection(address, _CANCEL, _OVER_GRPC, told, ends=True, token=next(credentials)),
        told,
    )


def reset_over_rest(address: tuple[str, int], told: Told, token: str) -> Iterator[None]:
    """Opens and resets REST calls, with the same credentials as `reset_over_grpc`."""
    path, kind = "/v1/workspaces/ws_1/task/cancel", "application/json"
    credentials = cycle(("", UNKNOWN_KEY, token))
    return _reset(
        lambda: Connection(
            address, path, _OVER_REST, told, ends=True, token=next(credentials), content_type=kind
        ),
        told,
    )


def _reset(connect: Callable[[], Connection], told: Told) -> Iterator[None]:
    """Opens streams on RESETTING_CONNECTIONS connections and resets them at once.

    Replaces each connection after a while, or when the server closes it.
    """
    left: dict[Connection, int] = {}
    while True:
        while len(left) < RESETTING_CONNECTIONS:
            left[connect()] = _RESETS_OF_CONNECTION
        for connection in list(left):
            try:
                if connection.is_idle:
                    connection.reset(_RESETS_AT_ONCE)
                    left[connection] -= _RESETS_AT_ONCE
                connection.step()
            except OSError:
                told["cut"] += 1
                left[connection] = 0
            if not left[connection]:
                connection.socket.close()
                del left[connection]
            yield


def bad_credentials(address: tuple[str, int], told: Told, _token: str) -> Iterator[None]:
    """Makes calls with an unknown key or a wrong signature on RESETTING_CONNECTIONS connections."""
    open_ = [
        Connection(address, _CANCEL, _OVER_GRPC, told, ends=True, token=token)
        for token in (UNKNOWN_KEY, WRONG_SIGNATURE)
        for _ in range(RESETTING_CONNECTIONS // 2)
    ]
    while True:
        for connection in open_:
            connection.step()
            connection.open(_BAD_IN_FLIGHT - len(connection.windows))
        yield


FLOODS: dict[str, Callable[[tuple[str, int], Told, str], Iterator[None]]] = {
    flood.__name__: flood
    for flood in (hold_messages, reset_over_grpc, reset_over_rest, bad_credentials)
}


# For each flood, whether it has opened enough streams to be complete.
_IS_COMPLETE: dict[str, Callable[[Told], bool]] = {
    "hold_messages": lambda told: told["opened"] >= HELD_STREAMS,
    "reset_over_grpc": lambda told: told["opened"] >= RESETS,
    "reset_over_rest": lambda told: told["opened"] >= RESETS,
    "bad_credentials": lambda told: told["opened"] >= BAD_CREDENTIALS,
}


class Flood:
    """A running flood. When the flood has ended, `told` contains its results."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self._output = process.stdout
        assert self._output.readline()
        self.told: dict[str, int] = {}
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether the flood has reported that it has opened enough streams."""
        if not self._is_complete and select.select([self._output], [], [], 0)[0]:
            self._is_complete = bool(self._output.readline())
        return self._is_complete


@contextmanager
def flooded(name: str, address: str, token: str = "") -> Iterator[Flood]:
    """Runs a flood while the context is open.

    `token` is a valid credential. All floods except `bad_credentials` use it, if it is given.
    """
    command = [sys.executable, "-m", __name__, name, address, token]
    # The output is not buffered, because `select` does not see what is in a buffer.
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        running = Flood(process)
        try:
            yield running
        finally:
            output, _ = process.communicate(timeout=30)
        running.told |= json.loads(output.splitlines()[-1])


def main(flood: str, address: str, token: str) -> None:
    """Floods the address until standard input ends."""
    host, _, port = address.rpartition(":")
    told: Told = Counter()
    ending = selectors.DefaultSelector()
    ending.register(sys.stdin, selectors.EVENT_READ)
    _print("begun")
    is_complete = False
    while not ending.select(0):
        try:
            for _ in FLOODS[flood]((host, int(port)), told, token):
                if not is_complete and _IS_COMPLETE[flood](told):
                    _print("complete")
                    is_complete = True
                if ending.select(0.001):
                    break
        except OSError as error:
            told[type(error).__name__] += 1
            time.sleep(_PAUSE_SECONDS)
    _print(json.dumps(told))


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
