"""The table of requests and expected answers, for each client and protocol.

raw_cases.py has the requests that no client sends. The id of the workspace selects what the stub
does with a call.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.edge.answers import SERVICE_SLUGS, rule
from tests.support.edge.clients import Request
from tests.support.edge.stub import AWKWARD

CANCEL = "/v1/workspaces/ws_1/task/cancel"
ALL = ("curl HTTP/1.1", "curl HTTP/2", "httpx HTTP/1.1", "httpx HTTP/2", "fetch")
CURL = ALL[:2]
HTTP1 = ("curl HTTP/1.1", "httpx HTTP/1.1", "fetch")
WITHOUT_FETCH = ALL[:4]
# One client of each protocol, for groups with many similar rows.
MIXED = ("curl HTTP/1.1", "httpx HTTP/2")


@dataclass(frozen=True)
class Case:
    """One row: a request or raw bytes, and the expected answer. `slug` is None for a success."""

    name: str
    sent: Request | bytes
    status: int
    slug: str | None = None
    # Expected headers. None means that the answer must not have the header.
    headers: Mapping[str, str | None] = field(default_factory=dict)
    # A part of the error message, or of the body of a success.
    says: str = ""
    clients: tuple[str, ...] = ALL
    # The fixture of the edge that receives the request.
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


def ok(name: str, sent: Request, status: int = 202, **more: object) -> Case:
    headers = {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "access-control-allow-origin": "*",
    }
    arguments = {"headers": headers, "reaches_service": True, **more}
    return Case(name, sent, status, **arguments)  # type: ignore[arg-type]


TASKS = "/v1/workspaces/ws_1/tasks"
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
    ok("a kind of JSON", post(body=b"{}", content_type="application/merge-patch+json")),
    ok(
        "an empty body sent as text, as by browsers",
        post(body=b"", content_type="text/plain;charset=UTF-8"),
    ),
    ok("a new workspace", post("/v1/workspaces", b'{"name":"x"}'), 201),
    ok("a new task", post(TASKS, b'{"description":"x","metadata":{"a":"b"}}')),
    ok("stop", post("/v1/workspaces/ws_1/stop")),
    ok("resume", post("/v1/workspaces/ws_1/resume")),
    ok("workspaces", get("/v1/workspaces"), 200),
    ok("a workspace", get("/v1/workspaces/ws_1"), 200),
    ok("a task", get(f"{TASKS}/task_1"), 200),
    ok("an escape in a value", get(f"{TASKS}?page_size=2&page_token=a%20workspace_id%3D"), 200),
    ok("20 MB", get(f"{TASKS}?page_size=200"), 200, clients=MIXED[1:]),
    ok("a path with dots", get("/v1/x/../workspaces//ws_1"), 200, clients=CURL),
    Case("healthz", get("/healthz"), 200, headers={"content-type": None}),
]

HEADS = [
    Case(
        "HEAD",
        Request("HEAD", "/v1/workspaces/ws_1"),
        200,
        headers={"content-length": "141"},
        reaches_service=True,
    ),
    Case(
        "HEAD of 20 MB",
        Request("HEAD", f"{TASKS}?page_size=200"),
        200,
        headers={"content-length": "20051632"},
        reaches_service=True,
        clients=MIXED[:1],
    ),
    Case(
        "HEAD of a call that fails",
        Request("HEAD", "/v1/workspaces/error_workspace_not_found"),
        404,
        "",
        {"retry-after": "7"},
        reaches_service=True,
    ),
    Case(
        "HEAD of a call that fails without details",
        Request("HEAD", "/v1/workspaces/bare_14"),
        503,
        "",
        {"retry-after": "1"},
        reaches_service=True,
    ),
    Case(
        "HEAD with a wrong query", Request("HEAD", "/v1/workspaces/ws_1?workspace_id=ws_2"), 400, ""
    ),
    Case("HEAD nowhere", Request("HEAD", "/nowhere"), 404, ""),
    Case(
        "HEAD of gRPC nowhere",
        Request("HEAD", "/nowhere", None, {"content-type": "application/grpc"}),
        404,
        "",
    ),
    Case(
        "HEAD of a stream",
        Request("HEAD", "/v1/workspaces/ws_1/events"),
        405,
        "",
        {"allow": "GET, OPTIONS"},
    ),
    Case("HEAD of a POST", Request("HEAD", CANCEL), 405, "", {"allow": "OPTIONS, POST"}),
    Case("HEAD of healthz", Request("HEAD", "/healthz"), 200),
]


def _service_errors() -> list[Case]:
    cases = []
    for slug in SERVICE_SLUGS:
        bearer = "Bearer" if slug == "unauthenticated" else None
        for sent in (
            post(f"/v1/workspaces/error_{slug}/task/cancel"),
            get(f"/v1/workspaces/error_{slug}"),
            get(f"/v1/workspaces/error_{slug}/events"),
        ):
            headers = {
                "retry-after": "7",
                "www-authenticate": bearer,
                "access-control-allow-origin": "*",
            }
            clients = ALL if sent.method == "POST" else MIXED
            name = f"{slug} of {sent.method} {sent.path.rpartition('/')[2]}"
            cases.append(
                Case(
                    name,
                    sent,
                    rule(slug).http,
                    slug,
                    headers,
                    AWKWARD,
                    clients,
                    reaches_service=True,
                )
            )
    return cases


# gRPC status codes that grpcio sends without details, and the slug that Envoy answers for each.
BARE_STATUSES = {
    1: "unavailable",
    2: "internal",
    4: "deadline_exceeded",
    5: "internal",
    8: "rate_limited",
    12: "internal",
    13: "internal",
}
BARE_STATUSES |= {14: "unavailable"}
SERVICE_ERRORS = [
    *_service_errors(),
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
            {"retry-after": "1" if slug == "unavailable" else None},
            reaches_service=True,
            clients=WITHOUT_FETCH,
        )
        for number, slug in BARE_STATUSES.items()
    ),
]

BODIES = {
    "truncated JSON": b'{"reason": "x',
    "an array": b"[]",
    "null": b"null",
    "a string": b'"text"',
    "a zero byte": b"\x00",
    "a number for a text": b'{"reason": 5}',
    "an object for a text": b'{"task_id": {}}',
    "an invalid duration": b'{"wait": "soon"}',
    "a duration without a unit": b'{"wait": 3}',
    "invalid UTF-8": b'{"reason": "\xff"}',
    "two values": b'{"reason": "x"} {}',
    "trailing data": b'{"reason": "x"} trailing',
    "deep nesting": b'{"a":' * 2500 + b"1" + b"}" * 2500,
    "a huge exponent": b'{"reason": "x", "wait": 1e999999999}',
    "a number with 10,000 digits": b'{"reason": ' + b"9" * 10_000 + b"}",
    "many open arrays": b"[" * 10_000,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "another workspace than the path's": b'{"workspace_id": "ws_2"}',
}
BAD_BODIES = [
    Case(name, post(body=body), 400, "validation_error", says="cannot be read")
    for name, body in BODIES.items()
]
BAD_BODIES += [
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
        clients=CURL,
    ),
    Case("an invalid number", post(TASKS, b'{"max_iterations":"x"}'), 400, "validation_error"),
]
NOT_FOUND = [
    "/",
    "/v1/workspaces/",
    "/v1/workspaces//task/cancel",
    "/v1/workspaces;a=b",
    "/evershell.agent.v1.RuntimeService/Register",
]
NOT_FOUND += [
    "/evershell.workspace.v1.WorkspaceService/CancelTask",
    "/v1/workspaces/ws_1/tasks/",
    "/V1/workspaces",
    "/healthz/",
]
NOT_ALLOWED = [
    ("GET", CANCEL, "OPTIONS, POST", ALL),
    ("PUT", CANCEL, "OPTIONS, POST", ALL),
    ("PATCH", CANCEL, "OPTIONS, POST", ALL),
    ("OPTIONS", CANCEL, "OPTIONS, POST", ALL),
    ("PURGE", CANCEL, "OPTIONS, POST", WITHOUT_FETCH),
    ("TRACE", CANCEL, "OPTIONS, POST", WITHOUT_FETCH),
    ("DELETE", "/v1/workspaces/ws_1", "GET, HEAD, OPTIONS", ALL),
    ("DELETE", "/v1/workspaces", "GET, HEAD, OPTIONS, POST", ALL),
]
BAD_QUERIES = [
    post(f"{CANCEL}?task_idd=task_1"),
    post(f"{CANCEL}?workspace_id=ws_2"),
    post(f"{CANCEL}?workspace%5Fid=ws_2"),
    get("/v1/workspaces/ws_1?workspace_id=ws_2"),
    get(f"{TASKS}/t?workspaceId=ws_2"),
    get(f"{TASKS}/t?task_id=u"),
    get(f"{TASKS}?page_size=1&workspace_id=ws_2"),
    get(f"{TASKS}?workspace%5Fid=ws_2&page_size=1"),
    get(f"{TASKS}?workspace_id&page_size=1"),
    get(f"{TASKS}?page_size=x"),
    get("/v1/workspaces/ws_1/events?afterr=1"),
    get("/v1/workspaces/ws_1/events?after=x"),
]
BAD_PATHS = [
    "/v1/workspaces/ws_1%2Fx",
    "/v1/workspaces/ws_1%5cx",
    "/v1/workspaces/ws_1%00",
    "/v1/workspaces/ws_1/../../..%2f",
]
PATHS = [
    *(
        Case(f"no such path {path}", post(path), 404, "not_found", clients=MIXED)
        for path in NOT_FOUND
    ),
    *(
        Case(
            f"{method} {path}",
            Request(method, path),
            405,
            "method_not_allowed",
            {"allow": allow},
            clients=clients,
        )
        for method, path, allow, clients in NOT_ALLOWED
    ),
    *(
        Case(f"{sent.method} {sent.path}", sent, 400, "validation_error", clients=MIXED)
        for sent in BAD_QUERIES
    ),
    *(
        Case(path, get(path), 400, "validation_error", says="The path contains", clients=CURL)
        for path in BAD_PATHS
    ),
]

GRPC_TYPES = ["application/grpc", "application/grpc+proto", "application/grpc-web"]
TYPES = [
    *(
        Case(
            f"{kind} with a body",
            post(body=b"\0\0\0\0\0", content_type=kind),
            415,
            "unsupported_media_type",
        )
        for kind in [*GRPC_TYPES, "text/xml", "text/plain", "multipart/form-data; boundary=x"]
    ),
    Case(
        "application/grpc without a body",
        post(content_type="application/grpc"),
        415,
        "unsupported_media_type",
    ),
    Case(
        "application/grpc with GET",
        get("/v1/workspaces/ws_1", content_type="application/grpc"),
        415,
        "unsupported_media_type",
    ),
    Case(
        "application/grpc nowhere",
        post("/nowhere", content_type="application/grpc"),
        404,
        "not_found",
    ),
]


def of_size(size: int, field: str = "description") -> bytes:
    """A JSON body of `size` bytes."""
    empty = json.dumps({field: ""}).encode()
    return json.dumps({field: "x" * (size - len(empty))}).encode()


CANCEL_BYTES, USUAL_BYTES = 16_384, 1_048_576
SIZES = [
    # Over HTTP/2 the edge sends the same answer and then resets the stream. A client that is still
    # sending may report the reset instead of the answer.
    *(
        Case(
            f"{size:,} bytes to {sent.path}",
            sent,
            413,
            "payload_too_large",
            says=f"{limit:,} bytes",
            clients=HTTP1,
        )
        for size, limit, sent in (
            (CANCEL_BYTES + 1, CANCEL_BYTES, post(body=of_size(CANCEL_BYTES + 1, "reason"))),
            (
                USUAL_BYTES,
                CANCEL_BYTES,
                post(f"{TASKS}/task_1/cancel", of_size(USUAL_BYTES, "reason")),
            ),
            (USUAL_BYTES + 1, USUAL_BYTES, post(TASKS, of_size(USUAL_BYTES + 1))),
        )
    ),
    ok("the largest body of a cancel", post(body=of_size(CANCEL_BYTES, "reason"))),
    ok("the largest body of others", post(TASKS, of_size(USUAL_BYTES))),
    Case(
        "large headers",
        get("/v1/workspaces", x_large="x" * 70_000),
        431,
        "headers_too_large",
        clients=("curl HTTP/1.1",),
    ),
    Case(
        "many headers",
        get("/v1/workspaces", **{f"x-{n}": "1" for n in range(200)}),
        431,
        "headers_too_large",
        clients=HTTP1,
    ),
    # HTTP allows these names and gRPC does not. The edge removes such headers.
    *(
        Case(
            f"{name!r} as a header",
            Request("POST", CANCEL, None, {name: "1"}),
            202,
            reaches_service=True,
        )
        for name in ("|", "x!", "#$%&'*+^`~", "UPPER~case")
    ),
    Case(
        "an underscore",
        Request("GET", "/v1/workspaces", None, {"x_under": "score"}),
        400,
        "validation_error",
        says="Use a hyphen",
        clients=HTTP1,
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
        "idempotency-key, grpc-timeout, x-grpc-web, x-user-agent"
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
            clients=WITHOUT_FETCH,
        )
        for path in (CANCEL, "/v1/workspaces", "/x", "/", "/docs", "/openapi.yaml", "/healthz")
    ),
    Case(
        "from another site",
        Request("POST", CANCEL, None, ORIGIN),
        202,
        headers=EXPOSED,
        clients=WITHOUT_FETCH,
        reaches_service=True,
    ),
    Case(
        "nowhere from another site",
        Request("POST", "/x", None, ORIGIN),
        404,
        "not_found",
        EXPOSED,
        clients=WITHOUT_FETCH,
    ),
    Case(
        "OPTIONS nowhere that is no preflight",
        Request("OPTIONS", "/x", None, ORIGIN),
        404,
        "not_found",
        EXPOSED,
        clients=WITHOUT_FETCH,
    ),
]

UNAVAILABLE = [
    Case(
        f"{sent.method} {sent.path} while the control plane is down",
        sent,
        503,
        "unavailable",
        {"retry-after": "1"},
        edge="edge_without_workers",
    )
    for sent in (
        post(),
        post(f"{TASKS}/task_1/cancel"),
        get("/v1/workspaces/ws_1"),
        get("/v1/workspaces/ws_1/events"),
    )
]
UNAVAILABLE.append(
    Case(
        "healthz while the control plane is down",
        get("/healthz"),
        503,
        "unavailable",
        edge="edge_without_workers",
    )
)
UNAVAILABLE.append(
    Case(
        "slow",
        post("/v1/workspaces/slow/task/cancel"),
        504,
        "deadline_exceeded",
        edge="edge_with_short_limits",
        reaches_service=True,
    )
)

CASES = SUCCESSES + HEADS + SERVICE_ERRORS + BAD_BODIES + PATHS + TYPES + SIZES + CORS + UNAVAILABLE
