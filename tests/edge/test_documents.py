"""Envoy serves the OpenAPI document and its page, without a worker and without a token."""

import re

import httpx
import pytest

from evershell.server.stack.envoy.documents import FILES
from tests.support.edge.answers import Answer, check
from tests.support.edge.stub import Stub
from tests.support.openapi import PATH


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


@pytest.mark.parametrize(
    "path",
    [
        "/docs/",
        "/docs/../workspace.binpb",
        "/docs/swagger-ui.js",
        "/openapi.yml",
        "/openapi.yaml/",
    ],
)
def test_other_paths_are_not_found(rest: httpx.Client, path: str) -> None:
    assert code(rest.get(path)) == "not_found"


def test_the_openapi_document_is_the_generated_one(rest: httpx.Client) -> None:
    assert rest.get("/openapi.yaml").text == PATH.read_text()


def test_the_page_refers_only_to_served_documents() -> None:
    page, script = (FILES[path][0].read_text() for path in ("/docs", "/docs/start.js"))
    named = set(re.findall(r'(?:href|src|url)[=:] ?"([^"]*)"', page + script))
    assert named | {"/docs"} == FILES.keys()
