"""Envoy serves the OpenAPI document, its page and the console, without a worker or a token."""

import httpx
import pytest

from evershell.stack.envoy.documents import FILES
from tests.support.edge.answers import Answer, check
from tests.support.edge.stub import Stub


def code(answer: httpx.Response) -> str | None:
    error = check(Answer(answer.status_code, answer.headers.multi_items(), answer.content))
    return None if error is None else str(error["code"])


@pytest.mark.parametrize("path", FILES)
def test_documents_are_served_with_safe_headers(rest: httpx.Client, stub: Stub, path: str) -> None:
    file, kind = FILES[path]
    answer = rest.get(path)
    assert (answer.status_code, answer.content) == (200, file.read_bytes())
    assert answer.headers["content-type"] == kind
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "frame-ancestors 'none'" in policy
        and "unsafe" not in policy
    )
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not [
        name for name in answer.headers if name.startswith(("grpc-", "x-evershell-", "x-envoy-"))
    ]
    head = rest.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        str(len(answer.content)),
    )
    assert stub.seen == []


@pytest.mark.parametrize("path", FILES)
def test_documents_are_read_only(rest: httpx.Client, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = rest.request(method, path)
        assert code(answer) == "method_not_allowed"
        assert answer.headers["allow"] == "GET, HEAD"


def test_the_console_allows_no_script_but_its_own(rest: httpx.Client) -> None:
    policy = rest.get("/console").headers["content-security-policy"]
    assert "script-src 'self';" in policy and "require-trusted-types-for 'script'" in policy
