"""The HTTP server of a program's metrics, with a bounded number of connections and threads."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from threading import Condition, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

# Each connection has a thread. A few connections suffice, because a scrape takes milliseconds.
_MAX_CONNECTIONS = 8
# The time limit of each read and write.
_TIMEOUT_SECONDS = 5.0


class _Server(ThreadingMixIn, WSGIServer):
    """Serves about _MAX_CONNECTIONS connections at a time, and every request to its end.

    To accept another connection, it closes the oldest silent one. If none is silent, it waits until
    a request ends, or for _TIMEOUT_SECONDS, and then accepts the connection anyway.
    """

    daemon_threads = True
    # With the default of 5, the system drops connections of a burst, and clients retry only after
    # 1 s.
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        # Connections that have not sent a whole request yet, the oldest first.
        self._silent: dict[socket.socket, None] = {}
        # Connections whose request is being served.
        self._busy: set[socket.socket] = set()
        self._changed = Condition()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._silent) + len(self._busy) >= _MAX_CONNECTIONS:
                if self._silent:
                    oldest = next(iter(self._silent))
                    del self._silent[oldest]
                    # The thread of this connection then ends, and closes the connection.
                    with suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)
                else:
                    self._changed.wait(_TIMEOUT_SECONDS)
            self._silent[request] = None
        super().process_request(request, client_address)

    def begin(self, request: Any) -> None:
        """Notes that the connection has sent a request."""
        with self._changed:
            self._silent.pop(request, None)
            self._busy.add(request)

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._silent.pop(request, None)
            self._busy.discard(request)
            self._changed.notify()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a client that has gone, or was silent, is not an error of the program."""


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_SECONDS

    def parse_request(self) -> bool:
        is_whole = super().parse_request()
        if is_whole:
            self.server.begin(self.request)  # type: ignore[attr-defined]
        return is_whole

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextmanager
def serving(app: Callable[..., Any], port: int, host: str) -> Iterator[None]:
    """Serves the WSGI application. Raises OSError if the port is taken."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server_class = type("_Server", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(host, port, app, server_class, _Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
