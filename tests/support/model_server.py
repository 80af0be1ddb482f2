"""A model endpoint on loopback that sends scripted answers in the chat completions protocol."""

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

MAX_SECONDS = 120.0
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3, "audio_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 1},
}
DONE = b"data: [DONE]\n\n"
# The number of pieces into which a streamed text is split.
_PIECES = 4


class Gate:
    """Holds back an answer until the test sets `opened`."""

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
    # If set, the endpoint waits for this gate before it answers.
    gate: Gate | None = None
    # Whether the endpoint closes the connection before the end of the body.
    cut: bool = False
    # If the client requests a stream, it gets these server-sent events instead of the body. A gate
    # among them holds back the events after it.
    stream: Sequence[bytes | Gate] = ()


def answers(value: Any, status: int = 200, **headers: str) -> Answer:
    """Returns a JSON answer. By default, its headers ask for a retry after 1 ms."""
    named = {
        name.replace("_", "-"): text for name, text in ({"retry_after_ms": "1"} | headers).items()
    }
    return Answer(json.dumps(value).encode(), status, {"content-type": "application/json"} | named)


def completes(message: Mapping[str, Any], **fields: Any) -> Answer:
    """Returns a chat completion with this message."""
    fields = {"model": "test-0613", "usage": USAGE} | fields
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
    whole = answers({"object": "chat.completion", "choices": [choice]} | fields)
    usage = fields.pop("usage")
    chunks = [event_of(delta, **fields) for delta in _deltas(message)]
    last = event_of({}, "stop", **fields)
    return replace(
        whole, stream=[*chunks, last, event({"choices": [], "usage": usage} | fields), DONE]
    )


def streams(*events: bytes | Gate, **changes: Any) -> Answer:
    """Returns a stream of these events."""
    return Answer(stream=events, **changes)


def event(chunk: Any) -> bytes:
    """Returns a server-sent event with this JSON."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def event_of(delta: Mapping[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    """Returns a server-sent event with this delta of a chat completion's message."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event(
        {"object": "chat.completion.chunk", "model": "test-0613", "choices": [choice]} | fields
    )


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Splits a message into the deltas of a stream."""
    yield {"role": "assistant", "content": ""}
    for name in ("content", "refusal"):
        for piece in _pieces(message.get(name)):
            yield {name: piece}
    for index, call in enumerate(message.get("tool_calls") or []):
        function = dict(call["function"])
        first, *rest = _pieces(function.pop("arguments")) or [None]
        yield {
            "tool_calls": [{**call, "index": index, "function": function | {"arguments": first}}]
        }
        for piece in rest:
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: Any) -> list[Any]:
    """Splits a text into pieces. A value of another type is one piece; an empty value has none."""
    if not text or not isinstance(text, str):
        return [text] if text else []
    size = max(len(text) // _PIECES, 1)
    return [text[at : at + size] for at in range(0, len(text), size)]


def says(content: str, **fields: Any) -> Answer:
    return completes({"content": content}, **fields)


def calls(*commands: str, **fields: Any) -> Answer:
    """Returns a chat completion with one call of the tool `shell` for each command."""
    return calls_tools(
        *(("shell", json.dumps({"command": command})) for command in commands), **fields
    )


def calls_tools(*named: tuple[str, Any], ids: Iterator[int] | None = None, **fields: Any) -> Answer:
    """Returns a chat completion with tool calls, each given as a name and arguments.

    If several answers get the same iterator as `ids`, all their calls have different ids.
    """
    made = [
        {
            "id": f"call_{next(ids) if ids else index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(named)
    ]
    return completes({"content": None, "tool_calls": made}, **fields)


class ModelServer(ThreadingHTTPServer):
    """Answers each request with the next answer of `script`, and repeats the last answer."""

    daemon_threads = True

    def __init__(self, *, can_stream: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # If False, the server sends no streams, even if a client requests one.
        self.can_stream = can_stream
        self.script: deque[Answer] = deque()
        # If set, this function makes the answer to each request, and the script is not used.
        self.respond: Callable[[dict[str, Any]], Answer] | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        # Set once a connection has ended. While a gate is closed, only the client can end the
        # connection.
        self.left = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def base_url(self) -> str:
        return f"http://{self.host}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def next_answer(self, request: dict[str, Any]) -> Answer:
        if self.respond is not None:
            return self.respond(request)
        return self.script.popleft() if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def finish(self) -> None:
        # http.server also calls this method if the client leaves before its request is complete.
        cast(ModelServer, self.server).left.set()
        super().finish()

    def do_POST(self) -> None:
        server = cast(ModelServer, self.server)
        body = self.rfile.read(int(self.headers["content-length"]))
        request = json.loads(body)
        server.requests.append({"path": self.path} | request)
        server.headers.append({name.lower(): value for name, value in self.headers.items()})
        answer = server.next_answer(request)
        if answer.gate is not None and not self._pass(answer.gate):
            return
        if answer.stream and server.can_stream and request.get("stream"):
            self._send_stream(answer, server)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body) + answer.cut))
        self.end_headers()
        self.wfile.write(answer.body)
        self.close_connection = answer.cut

    def _send_stream(self, answer: Answer, server: ModelServer) -> None:
        self.send_response(answer.status)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in answer.stream:
            if not isinstance(part, Gate):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            elif not self._pass(part):
                return
        self.close_connection = answer.cut
        if not answer.cut:
            self.wfile.write(b"0\r\n\r\n")

    def _pass(self, gate: Gate) -> bool:
        """Waits until the gate is opened.

        Returns False if the client closes the connection first.
        """
        gate.reached.set()
        self.connection.settimeout(0.01)
        while not gate.opened.is_set():
            try:
                if not self.connection.recv(1):
                    self.close_connection = True
                    return False
            except TimeoutError:
                continue
        self.connection.settimeout(None)
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing, to keep the output of the tests clean."""


@contextmanager
def model_server(*, can_stream: bool = True) -> Iterator[ModelServer]:
    """Runs a server until the block ends."""
    with ModelServer(can_stream=can_stream) as server:
        serving = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
