"""Random requests as bytes of HTTP/1.1, well-formed or not. A seed determines them."""

import random
from collections.abc import Iterator

from tests.support.edge.cases import RAW_CASES

METHODS = [
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PURGE",
    "BREW",
    "get",
    "",
    "G\x00T",
]
SEGMENTS = [
    "v1",
    "workspaces",
    "ws_1",
    "task",
    "tasks",
    "cancel",
    "events",
    "stop",
    "resume",
    "audit",
    "hold",
    "release",
    "healthz",
    "error_internal",
]
SEGMENTS += [
    "..",
    ".",
    "",
    "%2F",
    "%00",
    "%zz",
    "%",
    "ä",
    "a" * 300,
    "*",
    ";x=1",
    "{id}",
    "\\",
    "bare_14",
    "~",
    "%e2%98%83",
]
QUERIES = [
    "",
    "",
    "",
    "?",
    "?page_size=2",
    "?page_size=x",
    "?after=0&after=1",
    "?workspace_id=ws_2",
    "?%00=1",
    "?a[]=1",
    "?" + "q" * 2000,
]
NAMES = [
    "content-type",
    "content-length",
    "transfer-encoding",
    "host",
    "connection",
    "upgrade",
    "expect",
    "te",
    "x-request-id",
]
NAMES += [
    "authorization",
    "origin",
    "accept",
    "accept-encoding",
    "content-encoding",
    "x_under",
    "x-evershell-edge",
    "x-evershell-status",
]
NAMES += [
    "x-envoy-retry-on",
    "grpc-timeout",
    "x-http-method-override",
    "cookie",
    "range",
    "if-none-match",
    "x-forwarded-for",
    "",
    "ä",
]
VALUES = [
    "",
    "1",
    "-1",
    "0",
    "5",
    "chunked",
    "gzip, chunked",
    "application/json",
    "application/grpc",
    "text/plain",
    "close",
    "keep-alive",
]
VALUES += [
    "upgrade",
    "websocket",
    "h2c",
    "100-continue",
    "trailers",
    "x",
    "*",
    "null",
    "Bearer t",
    "https://a.example",
    "1m",
    "a" * 5000,
]
VALUES += [
    "\x00",
    "\x7f",
    "ä",
    "é" * 10,
    "\t",
    " ",
    "a\rb",
    "1, 2",
    '"',
    "%s%n",
    "${jndi:x}",
    "\x1b[2J",
]
BODIES = [
    "",
    "{}",
    "[]",
    "null",
    '{"reason":"x"}',
    '{"reason":',
    '{"wait":"1s"}',
    "\xff\xfe",
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "a=b",
]
BODIES += [
    '{"workspace_id":"ws_2"}',
    "[" * 500,
    '{"a":' * 200,
    "\x1f\x8b\x08",
    "x" * 70_000,
    '"\\ud800"',
    "1e999",
    '{"task_id":"\\u0000"}',
]
# The edge answers the preface of HTTP/2 with HTTP/2 frames, which the test does not parse.
PREFACE = b"PRI *"


def requests(seed: int) -> Iterator[bytes]:
    """Yields requests without end. Most ask to close the connection, so that the answer ends."""
    chance = random.Random(seed)
    while True:
        kind = chance.random()
        if kind < 0.1:
            sent = chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n"
        elif kind < 0.25:
            sent = _mutated(chance, chance.choice(SEEDS))
        else:
            sent = _composed(chance)
        if not sent.startswith(PREFACE):
            yield sent


SEEDS = [
    case.sent for case in RAW_CASES if isinstance(case.sent, bytes) and len(case.sent) < 10_000
]


def _composed(chance: random.Random) -> bytes:
    path = "/" + "/".join(chance.choice(SEGMENTS) for _ in range(chance.randrange(6)))
    if chance.random() < 0.5:
        path = chance.choice(
            [
                "/v1/workspaces/ws_1/task/cancel",
                "/v1/workspaces",
                "/v1/workspaces/ws_1/tasks",
                "/v1/workspaces/ws_1/events",
            ]
        )
    method = chance.choice(METHODS if chance.random() < 0.5 else METHODS[:3])
    version = chance.choice(["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/2", "HTTP/1.1 ", ""])
    lines = [f"{method} {path}{chance.choice(QUERIES)} {version}", "host: x"]
    lines += [
        f"{chance.choice(NAMES)}: {chance.choice(VALUES)}" for _ in range(chance.randrange(5))
    ]
    body = chance.choice(BODIES).encode("utf-8" if chance.random() < 0.5 else "latin-1", "replace")
    if chance.random() < 0.7:
        lines += [f"content-length: {len(body)}", "connection: close"]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


def _mutated(chance: random.Random, sent: bytes) -> bytes:
    mutable = bytearray(sent)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(mutable))
        match chance.randrange(3):
            case 0:
                mutable[place] = chance.randrange(256)
            case 1:
                del mutable[place : place + chance.randrange(1, 8)]
            case _:
                mutable[place:place] = chance.randbytes(chance.randrange(1, 8))
        if not mutable:
            return b"\r\n\r\n"
    return bytes(mutable)
