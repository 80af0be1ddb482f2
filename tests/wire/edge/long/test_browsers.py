"""Scripts of another site call the REST listener from a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.edge.cases import CANCEL
from tests.support.edge.running_edge import RunningEdge

# The headers that the preflight allows, except those of gRPC-Web and A2A. Each of these headers
# makes the browser send a preflight.
HEADERS = {
    "authorization": "Bearer t",
    "content-type": "application/json",
    "idempotency-key": "k1",
    "last-event-id": "7",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "a=b",
    "x-request-id": "chosen",
}
CALL = """
async ([url, method, headers, body]) => {
  const answer = await fetch(url, {method, headers, body: body ?? undefined});
  return {
    status: answer.status,
    id: answer.headers.get("x-request-id"),
    body: await answer.json(),
  };
}
"""


@pytest.fixture
def page(browser: Browser, edge: RunningEdge) -> Iterator[Page]:
    """A page whose origin is not the edge's address. It has no content security policy."""
    page = browser.new_page()
    page.goto(f"{edge.rest_url.replace('127.0.0.1', 'localhost')}/healthz")
    yield page
    page.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("POST", CANCEL, 202, None),
        ("POST", "/v1/workspaces/error_unauthenticated/task/cancel", 401, "unauthenticated"),
        ("POST", "/nowhere", 404, "not_found"),
        ("DELETE", CANCEL, 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/docs", 405, "method_not_allowed"),
    ],
)
def test_a_script_of_another_site_reads_every_answer(
    edge: RunningEdge, page: Page, method: str, path: str, status: int, slug: str | None
) -> None:
    body = None if method == "GET" else "{}"
    answer: dict[str, Any] = page.evaluate(CALL, [f"{edge.rest_url}{path}", method, HEADERS, body])
    assert answer["status"] == status
    assert answer["id"]
    if slug:
        assert answer["body"]["error"]["code"] == slug
        assert answer["body"]["error"]["request_id"] == answer["id"]
