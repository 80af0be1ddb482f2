"""A receiver of webhooks on loopback, for tests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The body."""
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verified(self, secret: str) -> dict[str, Any]:
        """The event. Raises WebhookVerificationError if it is not signed with the secret."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


class Receiver:
    """Answers each request with what `answer` returns: a status, and further headers."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.status = 200
        self.more_headers: dict[str, str] = {}
        self.answer: Callable[[Received], int] = lambda _: self.status
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def events(self, task_id: str = "") -> list[dict[str, Any]]:
        """The events that were received, in the order of their arrival, repeats included."""
        events = [each.event for each in list(self.requests)]
        return [each for each in events if not task_id or each["task_id"] == task_id]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received = Received(headers, body)
                status = receiver.answer(received)
                receiver.requests.append(received)
                self.send_response(status)
                for name, value in receiver.more_headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Prints nothing."""

        return Handler


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that answers 200 until a test says otherwise."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver._server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver._server.shutdown()
        thread.join()
        receiver._server.server_close()
