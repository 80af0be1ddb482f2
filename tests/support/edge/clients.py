"""Sends a request with curl, and parses answers from raw bytes."""

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.edge.answers import Answer

LIMIT_SECONDS = 15.0


@dataclass(frozen=True)
class Request:
    """A request, without the headers that a client adds."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def curl(url: str, request: Request, *, http2: bool = False) -> Answer:
    """Sends the request. A body is sent as JSON unless the request names another type."""
    with tempfile.TemporaryDirectory() as directory:
        head, body, sent = (Path(directory) / name for name in ("head", "body", "sent"))
        protocol = "--http2-prior-knowledge" if http2 else "--http1.1"
        command: list[str | Path] = ["curl", "-sS", protocol, "--path-as-is", "--globoff"]
        command += ["-m", str(LIMIT_SECONDS), "-D", head, "-o", body]
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
        trailers = _fields("\r\n".join(parts[1:]).split("\r\n"))
        return Answer(int(lines[0].split()[1]), _fields(lines[1:]), content, trailers)


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    split = [line.partition(":") for line in lines if line]
    return [(name.lower(), value.strip()) for name, _, value in split]


def parse(received: bytes, *, to_head: bool = False) -> Answer:
    """Parses the first final answer in raw bytes of HTTP/1.1. Skips interim (1xx) answers.

    Raises AssertionError or ValueError if the bytes have no complete head, or end within a chunked
    body. A body with a content-length may be incomplete.
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
        # Keeps bytes that do not begin another answer: they are a body, which must not exist.
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
    """Whether the bytes contain an answer with a content-length and its whole body.

    If they do, the reader can stop, even if the connection stays open.
    """
    try:
        answer = parse(received)
    except (AssertionError, ValueError):
        return False
    length = answer.header("content-length")
    return length is not None and len(answer.body) == int(length)
