"""The HTTP server of a program's metrics, with a bounded number of connections and threads."""

import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

# Each connection has a thread. A scrape takes milliseconds.
_MAX_CONNECTIONS = 8
# The time limit of each read and write.
_TIMEOUT_SECONDS = 5.0


class _Server(ThreadingMixIn, WSGIServer):
    """Closes its oldest connection to accept a new one, so that silent connections block nobody."""

    daemon_threads = True
    # With the default of 5, the system drops connections of a burst, and clients repeat them after
    # 1 s.
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: deque[socket.socket] = deque()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= _MAX_CONNECTIONS:
            # Its thread then ends, and closes it.
            with suppress(IndexError, OSError):
                self._open.popleft().shutdown(socket.SHUT_RDWR)
        self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or was silent, is not an error of the program."""


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_SECONDS

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
