"""Forwards connections, and cuts them in the middle of an answer."""

import itertools
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

RECEIVE_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)


class CuttingProxy(ThreadingTCPServer):
    """Cuts the first connections after the given numbers of bytes of their answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int], limits: Sequence[int], token: str) -> None:
        """With a token, adds it to each request: a browser's EventSource cannot send one."""
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.limits = itertools.chain(limits, itertools.repeat(None))
        self.token = token
        # The value of `last-event-id` of each request; None for a request without it.
        self.last_ids: list[str | None] = []
        self.cuts = 0


class _Connection(BaseRequestHandler):
    server: CuttingProxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as upstream, suppress(OSError):
            request = self.request.recv(RECEIVE_BYTES)
            if not request:
                # Node opens the next connection before it has a request.
                return
            found = re.search(rb"(?i)last-event-id: *(\S+)", request)
            self.server.last_ids.append(found[1].decode() if found else None)
            if self.server.token:
                header = f"\r\nauthorization: Bearer {self.server.token}\r\n".encode()
                request = request.replace(b"\r\n", header, 1)
            upstream.sendall(request)
            self._answer(upstream, next(self.server.limits))

    def _answer(self, upstream: socket.socket, limit: int | None) -> None:
        received = 0
        while part := upstream.recv(RECEIVE_BYTES):
            received += len(part)
            if limit is not None and received >= limit:
                self.request.sendall(part[: len(part) - (received - limit)])
                self.server.cuts += 1
                # Without this, the client would see an end instead of a reset.
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            self.request.sendall(part)


@contextmanager
def cutting_proxy(
    target: tuple[str, int], limits: Sequence[int], token: str = ""
) -> Iterator[CuttingProxy]:
    """Runs a proxy until the block ends."""
    with CuttingProxy(target, limits, token) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
