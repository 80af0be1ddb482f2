"""The table of requests that no client sends, as raw bytes of HTTP/1.1."""

from tests.support.edge.case import CANCEL, Case

# Every request has an id of the client. The answer must have an id that the edge has chosen.
HOST = "host: x\r\nx-request-id: chosen-by-the-client\r\n"
CLOSE = "connection: close\r\n"


def raw(
    line: str = f"POST {CANCEL} HTTP/1.1", headers: str = "", body: str = "", host: str = HOST
) -> bytes:
    return f"{line}\r\n{host}{headers}\r\n{body}".encode("latin-1")


def bad(name: str, sent: bytes, says: str = "not valid HTTP") -> Case:
    return Case(name, sent, 400, "validation_error", says=says)


def good(name: str, sent: bytes, status: int = 202) -> Case:
    return Case(name, sent, status, reaches_service=True)


def chunks(field: str, size: int) -> str:
    """The start of a JSON body, in three chunks of `size` bytes each."""
    body = f'{{"{field}":"'.ljust(3 * size, "x")
    return "".join(f"{size:x}\r\n{body[at : at + size]}\r\n" for at in range(0, 3 * size, size))


TASKS_LINE = "POST /v1/workspaces/ws_1/tasks HTTP/1.1"
CHUNKED = "transfer-encoding: chunked\r\n"
FRAMING = [
    bad(
        "two lengths that differ",
        raw(headers="content-length: 2\r\ncontent-length: 3\r\n", body="{}"),
    ),
    bad(
        "two equal lengths",
        raw(headers="content-length: 2\r\ncontent-length: 2\r\n", body="{}"),
    ),
    bad("a negative length", raw(headers="content-length: -1\r\n")),
    bad("a length that is not a number", raw(headers="content-length: abc\r\n")),
    bad("a length that overflows", raw(headers=f"content-length: {'9' * 23}\r\n")),
    bad("a length and chunks", raw(headers=f"content-length: 5\r\n{CHUNKED}", body="0\r\n\r\n")),
    bad("invalid chunks", raw(headers=CHUNKED, body="zz\r\n{}\r\n0\r\n\r\n")),
    bad(
        "a hidden transfer encoding",
        raw(headers="transfer-encoding: \x0bchunked\r\n", body="0\r\n\r\n"),
    ),
    bad(
        "another transfer encoding", raw(headers="transfer-encoding: gzip\r\n"), "transfer encoding"
    ),
    bad(
        "two transfer encodings",
        raw(headers="transfer-encoding: gzip, chunked\r\n", body="0\r\n\r\n"),
        "transfer encoding",
    ),
    bad("a space before the colon", raw(headers="content-length : 2\r\n", body="{}")),
    good("chunks", raw(headers=CHUNKED + CLOSE, body="2\r\n{}\r\n0\r\n\r\n")),
    good(
        "chunks with a trailer",
        raw(headers=CHUNKED + CLOSE, body="2\r\n{}\r\n0\r\nx-evershell-edge: 1\r\n\r\n"),
    ),
    good(
        "a body that is a request",
        raw(headers="content-length: 0\r\n" + CLOSE, body="GET /admin HTTP/1.1\r\n\r\n"),
    ),
    good("expect", raw(headers="expect: 100-continue\r\ncontent-length: 2\r\n" + CLOSE, body="{}")),
    Case(
        "too large in chunks",
        raw(headers=CHUNKED, body=chunks("reason", 0x2000)),
        413,
        "payload_too_large",
        says="16,384 bytes",
    ),
    Case(
        "a task too large in chunks",
        raw(TASKS_LINE, CHUNKED, chunks("description", 0x80000)),
        413,
        "payload_too_large",
        says="1,048,576 bytes",
    ),
]
LINES = [
    bad("no Host", raw(host="", headers=CLOSE), "no Host"),
    bad("two Hosts", raw(headers="host: y\r\n" + CLOSE), "more than one Host"),
    bad("an invalid Host", raw(host="host: a b\r\n")),
    bad("a header without a colon", raw(headers="nonsense\r\n")),
    bad("a header without a name", raw(headers=": 1\r\n")),
    bad("NUL in a header", raw(headers="x-a: a\x00b\r\n")),
    bad("an invalid header name", raw(headers="x@(a: 1\r\n")),
    bad("a method in lower case", raw("get /v1/workspaces HTTP/1.1")),
    bad("an unknown method", raw("BREW /v1/workspaces HTTP/1.1")),
    bad("no leading slash", raw("GET v1/workspaces HTTP/1.1")),
    bad("another scheme", raw("GET ftp://x/v1/workspaces HTTP/1.1")),
    bad("bytes beyond ASCII in the path", raw("GET /v1/workspaces/\xc3\xa9 HTTP/1.1")),
    bad("NUL in the path", raw("GET /v1/\x00 HTTP/1.1")),
    bad("a fragment", raw("GET /v1/workspaces#x HTTP/1.1", CLOSE), "The path contains"),
    bad("garbage", b"\x16\x03\x01 garbage\r\n\r\n"),
    bad("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 50),
    bad("a CONNECT with a path", raw("CONNECT /v1/workspaces HTTP/1.1")),
    Case("OPTIONS *", raw("OPTIONS * HTTP/1.1", CLOSE), 404, "not_found"),
    Case("dots beyond the root", raw("GET /v1/../../etc/passwd HTTP/1.1", CLOSE), 404, "not_found"),
    Case("HTTP/1.0", b"POST " + CANCEL.encode() + b" HTTP/1.0\r\n\r\n", 426, "upgrade_required"),
    Case("HTTP/0.9", b"GET /healthz\r\n\r\n", 426, "upgrade_required"),
    Case("HTTP/1.2", raw("GET /healthz HTTP/1.2"), 426, "upgrade_required"),
    Case("a long URL", raw(f"GET /{'x' * 70_000} HTTP/1.1"), 431, "headers_too_large"),
    Case("a long method", raw(f"{'X' * 70_000} / HTTP/1.1"), 431, "headers_too_large"),
    Case(
        "a websocket",
        raw(f"GET {CANCEL} HTTP/1.1", "connection: upgrade\r\nupgrade: websocket\r\n"),
        403,
        "upgrade_refused",
    ),
    Case(
        "CONNECT",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n",
        403,
        "upgrade_refused",
    ),
    good("an absolute URL", raw("GET http://x/v1/workspaces HTTP/1.1", CLOSE), 200),
    good(
        "an upgrade to HTTP/2, which is ignored",
        raw(headers="connection: upgrade, close\r\nupgrade: h2c\r\n"),
    ),
    good(
        "other headers named as hop-by-hop",
        raw(headers="connection: close, x-request-id, x-evershell-edge\r\n"),
    ),
]
SLOW = [
    Case(
        "slow headers",
        f"POST {CANCEL} HTTP/1.1\r\nhost: x\r\n".encode(),
        408,
        "request_timeout",
        edge="edge_with_short_limits",
    ),
    Case(
        "a slow body",
        raw(headers="content-type: application/json\r\ncontent-length: 10\r\n", body="{"),
        408,
        "request_timeout",
        edge="edge_with_short_limits",
    ),
]
RAW_CASES = FRAMING + LINES + SLOW
