"""One row of the table of requests: what is sent, and what is expected."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.edge.clients import Request

CANCEL = "/v1/workspaces/ws_1/task/cancel"
TASKS = "/v1/workspaces/ws_1/tasks"
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
