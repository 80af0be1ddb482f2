"""The table of requests and expected answers. The workspace id tells the stub what to do.

curl sends each row of CASES over HTTP/1.1 and, unless the row is `http1_only`, over HTTP/2.
RAW_CASES are sent as raw bytes, because curl cannot make most of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.edge.answers import SERVICE_SLUGS, rule
from tests.support.edge.clients import Request
from tests.support.edge.stub import AWKWARD

CANCEL = "/v1/workspaces/ws_1/task/cancel"
TASKS = "/v1/workspaces/ws_1/tasks"


@dataclass(frozen=True)
class Case:
    """A row of the table: a request, or raw bytes, and the expected answer.

    `slug` is None for a success.
    """

    name: str
    sent: Request | bytes
    status: int
    slug: str | None = None
    # The expected headers. None means that the answer must not have this header.
    headers: Mapping[str, str | None] = field(default_factory=dict)
    # A part of the error message; for a success, a part of the body.
    says: str = ""
    http1_only: bool = False
    # The name of the fixture for the edge that gets the request.
    edge: str = "edge"
    reaches_service: bool = False

    def __str__(self) -> str:
        return self.name


def get(path: str, **headers: str) -> Request:
    return Request("GET", path, None, _named(headers))


def post(path: str = CANCEL, body: bytes | None = None, **headers: str) -> Request:
    return Request("POST", path, body, _named(headers))


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def ok(name: str, sent: Request, status: int = 202, says: str = "") -> Case:
    headers = {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "access-control-allow-origin": "*",
    }
    return Case(name, sent, status, headers=headers, says=says, reaches_service=True)


SUCCESSES = [
    ok("no body", post()),
    ok("an empty object", post(body=b"{}")),
    ok("an empty body", post(body=b"")),
    ok("a named task", post(f"{TASKS}/task_9/cancel"), says="task_9"),
    ok(
        "all fields",
        post(body='{"reason":"größer","wait":"1.5s","force_after":"2s"}'.encode()),
        says="größer",
    ),
    ok(
        "a wait until the task ended",
        post("/v1/workspaces/ended/task/cancel", b'{"wait":"1s"}'),
        200,
    ),
    ok(
        "JSON sent as a form, as by curl -d",
        post(body=b'{"reason":"r"}', content_type="application/x-www-form-urlencoded"),
        says='"r"',
    ),
    ok("JSON with parameters", post(body=b"{}", content_type="Application/JSON; charset=utf-8")),
    ok(
        "an empty body sent as text, as by browsers",
        post(body=b"", content_type="text/plain;charset=UTF-8"),
    ),
    ok("a new workspace", post("/v1/workspaces", b'{"name":"x"}'), 201),
    ok("a new task", post(TASKS, b'{"description":"x","metadata":{"a":"b"}}')),
    ok("stop", post("/v1/workspaces/ws_1/stop")),
    ok("resume", post("/v1/workspaces/ws_1/resume")),
    ok("workspaces", get("/v1/workspaces"), 200),
    ok("a task", get(f"{TASKS}/task_1"), 200),
    ok("an escape in a value", get(f"{TASKS}?page_size=2&page_token=a%20workspace_id%3D"), 200),
    ok("20 MB", get(f"{TASKS}?page_size=200"), 200),
    ok("a path with dots", get("/v1/x/../workspaces//ws_1"), 200),
    Case("healthz", get("/healthz"), 200, headers={"content-type": None}),
]


def head(path: str, status: int, **headers: str) -> Case:
    """Returns the case of a HEAD request.

    Its `slug` is empty if the request fails, because the answer has no body.
    """
    slug = None if status == 200 else ""
    return Case(f"HEAD {path}", Request("HEAD", path), status, slug, _named(headers))


HEADS = [
    Case(
        "HEAD",
        Request("HEAD", "/v1/workspaces/ws_1"),
        200,
        headers={"content-length": "141"},
        reaches_service=True,
    ),
    Case(
        "HEAD of a call that fails",
        Request("HEAD", "/v1/workspaces/error_workspace_not_found"),
        404,
        "",
        {"retry-after": "7"},
        reaches_service=True,
    ),
    head("/v1/workspaces/ws_1?workspace_id=ws_2", 400),
    head("/nowhere", 404),
    head("/v1/workspaces/ws_1/events", 405, allow="GET, OPTIONS"),
    head(CANCEL, 405, allow="OPTIONS, POST"),
    head("/healthz", 200),
]


def _service_error(slug: str, sent: Request) -> Case:
    headers = {
        "retry-after": "7",
        "www-authenticate": "Bearer" if slug == "unauthenticated" else None,
        "access-control-allow-origin": "*",
    }
    name = f"{slug} of {sent.method} {sent.path.rpartition('/')[2]}"
    return Case(name, sent, rule(slug).http, slug, headers, AWKWARD, reaches_service=True)


# The gRPC status codes that grpcio sends without details, each with the slug of Envoy's answer.
BARE_STATUSES = {
    1: "unavailable",
    2: "internal",
    4: "deadline_exceeded",
    5: "internal",
    8: "rate_limited",
    12: "not_found",
    13: "internal",
    14: "unavailable",
}
SERVICE_ERRORS = [
    *(
        _service_error(slug, sent)
        for slug in SERVICE_SLUGS
        for sent in (
            post(f"/v1/workspaces/error_{slug}/task/cancel"),
            get(f"/v1/workspaces/error_{slug}"),
            get(f"/v1/workspaces/error_{slug}/events"),
        )
    ),
    Case(
        "an exception",
        post("/v1/workspaces/raise/task/cancel"),
        500,
        "internal",
        reaches_service=True,
    ),
    *(
        Case(
            f"status {number} without details",
            post(f"/v1/workspaces/bare_{number}/task/cancel"),
            rule(slug).http,
            slug,
            {"retry-after": None, "x-should-retry": "false"},
            reaches_service=True,
        )
        for number, slug in BARE_STATUSES.items()
    ),
]

BODIES = {
    "truncated JSON": b'{"reason": "x',
    "an array": b"[]",
    "null": b"null",
    "a number for a text": b'{"reason": 5}',
    "an object for a text": b'{"task_id": {}}',
    "an invalid duration": b'{"wait": "soon"}',
    "invalid UTF-8": b'{"reason": "\xff"}',
    "trailing data": b'{"reason": "x"} trailing',
    "deep nesting": b'{"a":' * 2500 + b"1" + b"}" * 2500,
    "a huge exponent": b'{"reason": "x", "wait": 1e999999999}',
    "many open arrays": b"[" * 10_000,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "another workspace than the path's": b'{"workspace_id": "ws_2"}',
}
BAD_BODIES = [
    *(
        Case(name, post(body=body), 400, "validation_error", says="The request is not valid. ")
        for name, body in BODIES.items()
    ),
    Case(
        "gzip with its content-encoding",
        post(body=b"\x1f\x8b\x08\x00", content_encoding="gzip"),
        400,
        "validation_error",
    ),
    Case(
        "a body with GET",
        Request("GET", "/v1/workspaces/ws_1", b'{"workspace_id":"ws_2"}'),
        400,
        "validation_error",
    ),
]

USE_CANCEL = "Use POST /v1/workspaces/{workspace_id}/task/cancel or POST /v1/workspaces/{w"
# Paths that no method has, and what the message says.
NOT_FOUND = [
    ("/", "No method has this path."),
    ("/v1/workspaces/", "Remove the slash at the end of the path."),
    (f"{CANCEL}/?a=1", "Remove the slash at the end of the path."),
    ("/v1/workspaces//task/cancel", "No method has this path."),
    ("/v1/workspace/ws_1/task/cancel", "The path has /workspaces, not /workspace."),
    ("/workspaces/ws_1/task/cancel", "Begin the path with /v1."),
    ("/v1/workspaces/ws_1/task:cancel", USE_CANCEL),
    ("/v1/workspaces/ws_1/tasks/task_1:cancel", USE_CANCEL),
    (f"{TASKS}/cancel", USE_CANCEL),
    ("/v1/workspaces/ws_1/cancel", USE_CANCEL),
    ("/v1/tasks/task_1/cancel", USE_CANCEL),
    ("/V1/workspaces", "No method has this path."),
    ("/evershell.agent.v1.RuntimeService/Register", ""),
    ("/evershell.workspace.v1.WorkspaceService/CancelTask", ""),
]
NOT_ALLOWED = [
    ("GET", CANCEL, "OPTIONS, POST", "Use POST /v1/workspaces/{workspace_id}/task/cancel."),
    ("OPTIONS", CANCEL, "OPTIONS, POST", ""),
    ("TRACE", CANCEL, "OPTIONS, POST", ""),
    (
        "PATCH",
        "/v1/workspaces/ws_1",
        "DELETE, GET, HEAD, OPTIONS",
        "Use GET /v1/workspaces/{workspace_id} or DELETE /v1/workspaces/{workspace_id}.",
    ),
]
BAD_QUERIES = [
    post(f"{CANCEL}?task_idd=task_1"),
    post(f"{CANCEL}?workspace_id=ws_2"),
    post(f"{CANCEL}?workspace%5Fid=ws_2"),
    get(f"{TASKS}/t?workspaceId=ws_2"),
    get(f"{TASKS}/t?task_id=u"),
    get(f"{TASKS}?page_size=1&workspace_id=ws_2"),
    get(f"{TASKS}?workspace_id&page_size=1"),
    get(f"{TASKS}?page_size=x"),
    get("/v1/workspaces/ws_1/events?afterr=1"),
    get("/v1/workspaces/ws_1/events?after=x"),
]
BAD_PATHS = ["/v1/workspaces/ws_1%2Fx", "/v1/workspaces/ws_1%00", "/v1/workspaces/ws_1/../../..%2f"]
PATHS = [
    *(
        Case(f"no such path {path}", post(path), 404, "not_found", says=says)
        for path, says in NOT_FOUND
    ),
    *(
        Case(
            f"{method} {path}",
            Request(method, path),
            405,
            "method_not_allowed",
            {"allow": allow},
            says,
        )
        for method, path, allow, says in NOT_ALLOWED
    ),
    *(Case(f"{sent.method} {sent.path}", sent, 400, "validation_error") for sent in BAD_QUERIES),
    *(Case(path, get(path), 400, "validation_error", says="The path") for path in BAD_PATHS),
]

TYPES = [
    *(
        Case(
            f"{kind} with a body",
            post(body=b"\0\0\0\0\0", content_type=kind),
            415,
            "unsupported_media_type",
        )
        for kind in ("application/grpc", "application/grpc-web", "text/plain")
    ),
    Case(
        "application/grpc with GET",
        get("/v1/workspaces/ws_1", content_type="application/grpc"),
        415,
        "unsupported_media_type",
    ),
    # Envoy refuses these requests before it routes them.
    *(
        Case(f"application/grpc, {sent.path} {sent.headers}", sent, 400, "validation_error")
        for sent in (
            get(BAD_PATHS[0], content_type="application/grpc"),
            get("/v1/workspaces/ws_1", content_type="application/grpc", x_bin="!"),
        )
    ),
]


def of_size(size: int, name: str) -> bytes:
    """A JSON body of `size` bytes."""
    empty = json.dumps({name: ""}).encode()
    return json.dumps({name: "x" * (size - len(empty))}).encode()


CANCEL_BYTES, USUAL_BYTES = 16_384, 1_048_576
SIZES = [
    # Over HTTP/2, the edge sends the same answer and then resets the stream. A client that is still
    # sending may report the reset instead of the answer.
    *(
        Case(
            f"{size:,} bytes to {path}",
            post(path, of_size(size, name)),
            413,
            "payload_too_large",
            says=f"{limit:,} bytes",
            http1_only=True,
        )
        for size, limit, path, name in (
            (CANCEL_BYTES + 1, CANCEL_BYTES, CANCEL, "reason"),
            (USUAL_BYTES, CANCEL_BYTES, f"{TASKS}/task_1/cancel", "reason"),
            (USUAL_BYTES + 1, USUAL_BYTES, TASKS, "description"),
        )
    ),
    ok("the largest body of a cancel", post(body=of_size(CANCEL_BYTES, "reason"))),
    ok("the largest body of others", post(TASKS, of_size(USUAL_BYTES, "description"))),
    Case(
        "large headers",
        get("/v1/workspaces", x_large="x" * 70_000),
        431,
        "headers_too_large",
        http1_only=True,
    ),
    Case(
        "many headers",
        get("/v1/workspaces", **{f"x-{n}": "1" for n in range(200)}),
        431,
        "headers_too_large",
        http1_only=True,
    ),
    # HTTP allows these header names, but gRPC does not, so the edge removes such headers.
    *(
        Case(
            f"{name!r} as a header",
            Request("POST", CANCEL, None, {name: "1"}),
            202,
            reaches_service=True,
        )
        for name in ("|", "#$%&'*+^`~")
    ),
    Case(
        "an underscore",
        Request("GET", "/v1/workspaces", None, {"x_under": "score"}),
        400,
        "validation_error",
        says="Use a hyphen",
        http1_only=True,
    ),
]

ORIGIN = {"origin": "https://app.example"}
PREFLIGHT_HEADERS = ORIGIN | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}
PREFLIGHT = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": (
        "authorization, content-type, traceparent, tracestate, last-event-id, x-request-id, "
        "idempotency-key, grpc-timeout, x-grpc-web, x-user-agent, a2a-version, a2a-extensions"
    ),
    "access-control-allow-methods": "DELETE, GET, HEAD, PATCH, POST, PUT",
}
EXPOSED = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "x-request-id, retry-after, x-should-retry, www-authenticate",
}
CORS = [
    *(
        Case(
            f"preflight of {path}",
            Request("OPTIONS", path, None, PREFLIGHT_HEADERS),
            200,
            headers=PREFLIGHT,
        )
        for path in (CANCEL, "/x", "/docs", "/healthz")
    ),
    Case(
        "from another site",
        Request("POST", CANCEL, None, ORIGIN),
        202,
        headers=EXPOSED,
        reaches_service=True,
    ),
    *(
        Case(f"{method} nowhere from another site", request, 404, "not_found", EXPOSED)
        for method in ("POST", "OPTIONS")
        for request in [Request(method, "/x", None, ORIGIN)]
    ),
]

# Calls that fail at the edge, and whether the call can be repeated without a second effect.
REPEATS = [
    (post(), False),
    (post(body=b'{"task_id":"task_1"}'), False),  # the edge does not see the task id in a body
    (post(f"{TASKS}/task_1/cancel"), True),
    (post(TASKS, b"{}"), False),
    (post(TASKS, b"{}", idempotency_key="k"), True),
    (post("/v1/workspaces", b"{}"), False),
    (post("/v1/workspaces", b"{}", idempotency_key="k"), True),
    (post("/v1/workspaces/ws_1/stop"), False),
    (post("/v1/workspaces/ws_1/resume"), False),
    (post("/v1/tasks/cancel", b'{"filter":{"workspace_ids":["ws_1"]}}'), True),
    (post("/v1/hold"), True),
    (post("/v1/hold/release"), False),
    (get("/v1/workspaces/ws_1"), True),
    (get("/v1/workspaces/ws_1/events"), True),
]
RETRY = {"retry-after": "1", "x-should-retry": None}
NO_RETRY = {"retry-after": None, "x-should-retry": "false"}
UNAVAILABLE = [
    *(
        Case(
            f"{sent.method} {sent.path} {number} while the control plane is down",
            sent,
            503,
            "unavailable",
            RETRY if can_repeat else NO_RETRY,
            http1_only=True,
            edge="edge_without_workers",
        )
        for number, (sent, can_repeat) in enumerate(REPEATS)
    ),
    Case(
        "healthz while the control plane is down",
        get("/healthz"),
        503,
        "unavailable",
        edge="edge_without_workers",
    ),
    Case(
        "slow",
        post("/v1/workspaces/slow/task/cancel"),
        504,
        "deadline_exceeded",
        NO_RETRY,
        edge="edge_with_short_limits",
        reaches_service=True,
    ),
]
CASES = SUCCESSES + HEADS + SERVICE_ERRORS + BAD_BODIES + PATHS + TYPES + SIZES + CORS + UNAVAILABLE

# Contains a request id that the client has chosen. The answer must have a request id that the edge
# has made.
HOST = "host: x\r\nx-request-id: chosen-by-the-client\r\n"
CLOSE = "connection: close\r\n"
CHUNKED = "transfer-encoding: chunked\r\n"


def raw(
    line: str = f"POST {CANCEL} HTTP/1.1", headers: str = "", body: str = "", host: str = HOST
) -> bytes:
    return f"{line}\r\n{host}{headers}\r\n{body}".encode("latin-1")


def bad(name: str, sent: bytes, says: str = "not valid HTTP") -> Case:
    return Case(name, sent, 400, "validation_error", says=says)


def good(name: str, sent: bytes, status: int = 202) -> Case:
    return Case(name, sent, status, reaches_service=True)


def chunks(name: str, size: int) -> str:
    """The start of a JSON body, in three chunks of `size` bytes each."""
    body = f'{{"{name}":"'.ljust(3 * size, "x")
    return "".join(f"{size:x}\r\n{body[at : at + size]}\r\n" for at in range(0, 3 * size, size))


FRAMING = [
    bad(
        "two lengths that differ",
        raw(headers="content-length: 2\r\ncontent-length: 3\r\n", body="{}"),
    ),
    bad("a negative length", raw(headers="content-length: -1\r\n")),
    bad("a length that overflows", raw(headers=f"content-length: {'9' * 23}\r\n")),
    bad("a length and chunks", raw(headers=f"content-length: 5\r\n{CHUNKED}", body="0\r\n\r\n")),
    bad("invalid chunks", raw(headers=CHUNKED, body="zz\r\n{}\r\n0\r\n\r\n")),
    bad(
        "a hidden transfer encoding",
        raw(headers="transfer-encoding: \x0bchunked\r\n", body="0\r\n\r\n"),
    ),
    bad(
        "two transfer encodings",
        raw(headers="transfer-encoding: gzip, chunked\r\n", body="0\r\n\r\n"),
        "transfer encoding",
    ),
    bad("a space before the colon", raw(headers="content-length : 2\r\n", body="{}")),
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
]
LINES = [
    bad("no Host", raw(host="", headers=CLOSE), "no Host"),
    bad("two Hosts", raw(headers="host: y\r\n" + CLOSE), "more than one Host"),
    bad("an invalid Host", raw(host="host: a b\r\n")),
    bad("a header without a colon", raw(headers="nonsense\r\n")),
    bad("NUL in a header", raw(headers="x-a: a\x00b\r\n")),
    bad("an unknown method", raw("BREW /v1/workspaces HTTP/1.1")),
    bad("no leading slash", raw("GET v1/workspaces HTTP/1.1")),
    bad("another scheme", raw("GET ftp://x/v1/workspaces HTTP/1.1")),
    bad("bytes beyond ASCII in the path", raw("GET /v1/workspaces/\xc3\xa9 HTTP/1.1")),
    bad("a fragment", raw("GET /v1/workspaces#x HTTP/1.1", CLOSE), "The path contains"),
    bad("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 50),
    bad("a CONNECT with a path", raw("CONNECT /v1/workspaces HTTP/1.1")),
    Case("dots beyond the root", raw("GET /v1/../../etc/passwd HTTP/1.1", CLOSE), 404, "not_found"),
    Case("HTTP/1.0", b"POST " + CANCEL.encode() + b" HTTP/1.0\r\n\r\n", 426, "upgrade_required"),
    Case("HTTP/0.9", b"GET /healthz\r\n\r\n", 426, "upgrade_required"),
    Case("a long URL", raw(f"GET /{'x' * 70_000} HTTP/1.1"), 431, "headers_too_large"),
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
