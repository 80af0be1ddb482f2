"""The connections of a client to the edge, which a test can cut or silence."""

import itertools
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

from tests.support.stack import Stack

RECEIVE_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)


class Proxy(ThreadingTCPServer):
    """Forwards connections. Cuts the first connections, each after a given number of bytes of its
    answers.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int], limits: Sequence[int], token: str) -> None:
        """Adds `token`, unless it is empty, to each request, because a browser's EventSource cannot
        send a token.
        """
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.limits = itertools.chain(limits, itertools.repeat(None))
        self.token = token
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # The value of `last-event-id` of each request; None for a request without it.
        self.last_ids: list[str | None] = []
        self.cuts = 0
        self.is_swallowing = False
        self._is_plugged_in = True
        self._plug = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def unplug(self) -> None:
        """Cuts all connections. From then on, new connections are closed at once."""
        with self._plug:
            self._is_plugged_in = False
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """Drops what both ends send from now on, without closing a connection, until `plug_in`."""
        self.is_swallowing = True

    def plug_in(self) -> None:
        """Forwards new connections again, and the existing ones that have lost nothing."""
        self._is_plugged_in = True
        self.is_swallowing = False

    @contextmanager
    def connected(self, *ends: socket.socket) -> Iterator[bool]:
        """Lets `unplug` cut a connection inside the block. Yields False if the proxy is already
        unplugged.
        """
        with self._plug:
            self._sockets.update(ends)
            is_plugged_in = self._is_plugged_in
        try:
            yield is_plugged_in
        finally:
            with self._plug:
                self._sockets.difference_update(ends)


class _Connection(BaseRequestHandler):
    server: Proxy
    # Whether a part of the connection was dropped.
    has_lost = False

    def handle(self) -> None:
        with (
            socket.create_connection(self.server.target) as edge,
            self.server.connected(self.request, edge) as is_plugged_in,
            suppress(OSError),
        ):
            # Node opens connections in advance. Those without a request must use up no limit.
            if not is_plugged_in or not (request := self.request.recv(RECEIVE_BYTES)):
                return
            limit = next(self.server.limits)
            answers = threading.Thread(target=self._answer, args=(edge, limit))
            answers.start()
            while request:
                if not self._is_lost():
                    edge.sendall(self._noted(request))
                request = self.request.recv(RECEIVE_BYTES)
            edge.shutdown(socket.SHUT_WR)
            answers.join()

    def _is_lost(self) -> bool:
        self.has_lost = self.has_lost or self.server.is_swallowing
        return self.has_lost

    def _noted(self, request: bytes) -> bytes:
        # The rest of a body may arrive separately, without headers.
        if re.match(rb"[A-Z]+ \S+ HTTP/1", request):
            found = re.search(rb"(?i)\r\nlast-event-id: *(\S+)", request)
            self.server.last_ids.append(found[1].decode() if found else None)
        header = f"\r\nauthorization: Bearer {self.server.token}\r\n".encode()
        return request.replace(b"\r\n", header, 1) if self.server.token else request

    def _answer(self, edge: socket.socket, limit: int | None) -> None:
        received = 0
        with suppress(OSError):
            while part := edge.recv(RECEIVE_BYTES):
                received += len(part)
                if limit is not None and received >= limit:
                    self.request.sendall(part[: len(part) - (received - limit)])
                    self.server.cuts += 1
                    # Without this option, the client would see an end instead of a reset.
                    self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    self.request.shutdown(socket.SHUT_RD)
                    return
                if not self._is_lost():
                    self.request.sendall(part)
            self.request.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(stack: Stack, limits: Sequence[int] = (), token: str = "") -> Iterator[Proxy]:
    """Runs a proxy in front of the REST port until the block ends."""
    edge = urlsplit(stack.ready["rest_url"])
    with Proxy((str(edge.hostname), int(edge.port or 0)), limits, token) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.unplug()
            server.shutdown()
            thread.join()
