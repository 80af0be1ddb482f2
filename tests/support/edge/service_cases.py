"""Requests that reach the service, and its answers: successes, HEAD and errors."""

from tests.support.edge.answers import SERVICE_SLUGS, rule
from tests.support.edge.case import (
    ALL,
    CANCEL,
    CURL,
    MIXED,
    TASKS,
    WITHOUT_FETCH,
    Case,
    get,
    ok,
    post,
)
from tests.support.edge.clients import Request
from tests.support.edge.stub import AWKWARD

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
            {"retry-after": None, "x-should-retry": "false"},
            reaches_service=True,
            clients=WITHOUT_FETCH,
        )
        for number, slug in BARE_STATUSES.items()
    ),
]
