"""A model's endpoint on loopback that speaks the chat-completions protocol, and answers as the test has said."""

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

MAX_SECONDS = 15.0
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class Gate:
    """Holds an answer back until the test lets it go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def await_reached(self) -> None:
        assert self.reached.wait(MAX_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint does with one request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    # Waits for it before it answers.
    gate: Gate | None = None
    # Closes the connection in the middle of the body.
    cut: bool = False


def answers(value: Any, status: int = 200, **headers: str) -> Answer:
    """JSON. Retries are told to come at once unless the headers say otherwise."""
    named = {name.replace("_", "-"): text for name, text in ({"retry_after_ms": "1"} | headers).items()}
    return Answer(json.dumps(value).encode(), status, {"content-type": "application/json"} | named)


def completes(message: Mapping[str, Any], **fields: Any) -> Answer:
    """A chat completion with this message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
    return answers({"object": "chat.completion", "model": "test-0613", "choices": [choice], "usage": USAGE} | fields)


def says(content: str, **fields: Any) -> Answer:
    return completes({"content": content}, **fields)


def calls(*commands: str, **fields: Any) -> Answer:
    """A tool call a command."""
    return calls_tools(*(("shell", json.dumps({"command": command})) for command in commands), **fields)


def calls_tools(*named: tuple[str, Any], **fields: Any) -> Answer:
    """Tool calls, each by name and arguments."""
    made = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(named)
    ]
    return completes({"content": None, "tool_calls": made}, **fields)


class ModelServer(ThreadingHTTPServer):
    """Answers each request with the next of `script`; the last one goes on for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: deque[Answer] = deque()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        # A client went away from a gate before it was opened.
        self.left = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def base_url(self) -> str:
        return f"http://{self.host}/v1"

    def next_answer(self) -> Answer:
        return self.script.popleft() if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = cast(ModelServer, self.server)
        body = self.rfile.read(int(self.headers["content-length"]))
        server.requests.append({"path": self.path} | json.loads(body))
        server.headers.append({name.lower(): value for name, value in self.headers.items()})
        answer = server.next_answer()
        if answer.gate is not None and not self._pass(answer.gate, server):
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body) + answer.cut))
        self.end_headers()
        self.wfile.write(answer.body)
        self.close_connection = answer.cut

    def _pass(self, gate: Gate, server: ModelServer) -> bool:
        """Waits for the gate; False: the client left first."""
        gate.reached.set()
        self.connection.settimeout(0.01)
        while not gate.opened.is_set():
            try:
                if not self.connection.recv(1):
                    server.left.set()
                    self.close_connection = True
                    return False
            except TimeoutError:
                continue
        self.connection.settimeout(None)
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """The tests' output stays clean."""


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """A server that is listening; it ends with the block."""
    with ModelServer() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
