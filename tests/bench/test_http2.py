"""The frames of the load generator, read by the test itself."""

import socket
import struct
from collections.abc import Iterator

import pytest
from hpack import Decoder

from tests.bench.http2 import RESET, Connection, message

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Peer:
    """The server's end of a connection."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.connection = Connection(
                f"127.0.0.1:{listener.getsockname()[1]}", "/Test/Call", receive_seconds=5
            )
            self.socket, _ = listener.accept()
        self.socket.settimeout(5)
        self.connection.flush()
        assert self._read(len(PREFACE)) == PREFACE

    def _read(self, size: int) -> bytes:
        return self.socket.recv(size, socket.MSG_WAITALL)

    def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: its type, flags, stream and payload."""
        length = int.from_bytes(self._read(3), "big")
        kind, flags, stream = struct.unpack(">BBI", self._read(6))
        return kind, flags, stream, self._read(length)

    def frames(self, count: int) -> list[tuple[int, int, int, bytes]]:
        return [self.frame() for _ in range(count)]

    def send(self, kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> None:
        self.socket.sendall(self.encoded(kind, payload, stream, flags))

    @staticmethod
    def encoded(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
        return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload

    def has_more(self) -> bool:
        """Whether the connection has sent something that was not read."""
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(5)


def test_the_metadata_may_change_between_calls(peer: Peer) -> None:
    """The header blocks of a connection build on each other."""
    decoder = Decoder()
    seen = []
    for token in ("a", "b", "b", "a"):
        peer.connection.set_metadata([("authorization", token)])
        for _ in range(2):
            peer.connection.call(message(b""))
            peer.connection.flush()
            (_, _, _, block), _ = peer.frames(2)
            fields = dict(decoder.decode(block, raw=True))
            assert fields[b":path"] == b"/Test/Call"
            seen.append(fields[b"authorization"])
    assert seen == [b"a", b"a", b"b", b"b", b"b", b"b", b"a", b"a"]


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    assert [kind for kind, *_ in peer.frames(2)] == [SETTINGS, WINDOW_UPDATE]
    yield peer
    peer.connection.close()
    peer.socket.close()


def test_no_more_is_sent_than_the_window_allows(peer: Peer) -> None:
    body = message(bytes(10_000 - 5))
    for _ in range(8):
        peer.connection.call(body)
    peer.connection.flush()
    sent = peer.frames(8 + 6)
    assert [kind for kind, *_ in sent].count(DATA) == 6
    assert not peer.has_more()
    peer.send(WINDOW_UPDATE, struct.pack(">I", 10_000))
    assert peer.connection.receive() == []
    assert peer.frame() == (DATA, 1, 13, body)
    assert not peer.has_more()
    peer.send(WINDOW_UPDATE, struct.pack(">I", 10_000))
    peer.connection.receive()
    assert peer.frame() == (DATA, 1, 15, body)


def test_later_calls_refer_to_the_metadata_of_the_first(peer: Peer) -> None:
    streams = [peer.connection.call(message(b"x")) for _ in range(3)]
    peer.connection.flush()
    frames = peer.frames(6)
    assert [stream for _, _, stream, _ in frames[::2]] == streams == [1, 3, 5]
    first, *later = (len(payload) for kind, _, _, payload in frames if kind == HEADERS)
    assert later == [6, 6]
    assert first > 20


def test_a_ping_is_answered_once(peer: Peer) -> None:
    peer.send(PING, b"12345678")
    peer.connection.receive()
    assert peer.frame() == (PING, 1, 0, b"12345678")
    peer.send(PING, b"12345678", flags=1)
    peer.connection.receive()
    assert not peer.has_more()


def test_settings_are_acknowledged(peer: Peer) -> None:
    peer.send(SETTINGS, struct.pack(">HI", 3, 100))
    peer.connection.receive()
    assert peer.frame() == (SETTINGS, 1, 0, b"")


def test_frames_may_arrive_in_pieces(peer: Peer) -> None:
    stream = peer.connection.call(message(b""))
    collected = peer.connection.collect(stream)
    peer.connection.flush()
    whole = peer.encoded(DATA, message(b"abc"), stream) + peer.encoded(RST_STREAM, bytes(4), stream)
    ended = []
    for position in range(len(whole)):
        peer.socket.sendall(whole[position : position + 1])
        ended += peer.connection.receive()
    assert ended == [(stream, RESET)]
    assert collected == message(b"abc")


def test_a_server_that_goes_away_is_an_error(peer: Peer) -> None:
    peer.send(GOAWAY, bytes(8) + b"too_many_pings")
    with pytest.raises(ConnectionError, match="too_many_pings"):
        peer.connection.receive()
