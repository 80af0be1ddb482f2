"""The connection between a browser and the edge, which a test can unplug."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

RECEIVE_BYTES = 65_536


class Cable(ThreadingTCPServer):
    """Forwards connections to the edge while it is plugged in."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.is_plugged_in = True
        self._plug = threading.Lock()
        self._sockets: set[socket.socket] = set()
        # The browser reads the stream of events with this header after a loss of its connection.
        self.resumed_after: list[int] = []

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def unplug(self) -> None:
        """Cuts all connections. New ones are closed at once."""
        with self._plug:
            self.is_plugged_in = False
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def plug_in(self) -> None:
        self.is_plugged_in = True

    @contextmanager
    def connected(self, *ends: socket.socket) -> Iterator[bool]:
        """Lets `unplug` cut a connection inside the block. Yields False if it has already."""
        with self._plug:
            self._sockets.update(ends)
            is_plugged_in = self.is_plugged_in
        try:
            yield is_plugged_in
        finally:
            with self._plug:
                self._sockets.difference_update(ends)


class _Connection(BaseRequestHandler):
    server: Cable

    def handle(self) -> None:
        if not self.server.is_plugged_in:
            return
        with (
            socket.create_connection(self.server.target) as edge,
            self.server.connected(self.request, edge) as is_plugged_in,
        ):
            if not is_plugged_in:
                return
            answers = threading.Thread(target=self._forward, args=(edge, self.request))
            answers.start()
            self._forward(self.request, edge)
            answers.join()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(RECEIVE_BYTES):
                if b"\r\nlast-event-id: " in part:
                    number = part.partition(b"\r\nlast-event-id: ")[2].partition(b"\r\n")[0]
                    self.server.resumed_after.append(int(number))
                sink.sendall(part)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def cable(target: tuple[str, int]) -> Iterator[Cable]:
    with Cable(target) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.unplug()
            server.shutdown()
            thread.join()
