"""The table of requests and expected answers, for each client and protocol.

Most rows are in service_cases.py and refused_cases.py, and the requests that no client sends in
raw_cases.py. The id of the workspace selects what the stub does with a call.
"""

from tests.support.edge.case import CANCEL, TASKS, WITHOUT_FETCH, Case, get, post
from tests.support.edge.clients import Request
from tests.support.edge.refused_cases import BAD_BODIES, PATHS, SIZES, TYPES
from tests.support.edge.service_cases import HEADS, SERVICE_ERRORS, SUCCESSES

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
        "OPTIONS nowhere that is not a preflight",
        Request("OPTIONS", "/x", None, ORIGIN),
        404,
        "not_found",
        EXPOSED,
        clients=WITHOUT_FETCH,
    ),
]

# Whether a repeat of a call that fails at the edge has no other effect.
REPEATS = [
    (post(), False),
    (post(body=b'{"task_id":"task_1"}'), False),  # the edge does not read bodies
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
    Case(
        f"{sent.method} {sent.path} {number} while the control plane is down",
        sent,
        503,
        "unavailable",
        RETRY if can_repeat else NO_RETRY,
        edge="edge_without_workers",
        clients=WITHOUT_FETCH[:1],
    )
    for number, (sent, can_repeat) in enumerate(REPEATS)
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
        NO_RETRY,
        edge="edge_with_short_limits",
        reaches_service=True,
    )
)

CASES = SUCCESSES + HEADS + SERVICE_ERRORS + BAD_BODIES + PATHS + TYPES + SIZES + CORS + UNAVAILABLE
