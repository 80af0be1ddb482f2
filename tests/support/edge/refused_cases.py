"""Requests that the edge refuses by itself: bodies, paths, types and sizes."""

import json

from tests.support.edge.case import (
    ALL,
    CANCEL,
    CURL,
    HTTP1,
    MIXED,
    TASKS,
    WITHOUT_FETCH,
    Case,
    get,
    ok,
    post,
)
from tests.support.edge.clients import Request

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
    Case(name, post(body=body), 400, "validation_error", says="The request is not valid. ")
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
