"""Sends every row of the tables of cases, with every client of the row."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.edge.answers import Answer, check
from tests.support.edge.case import Case
from tests.support.edge.cases import CASES
from tests.support.edge.clients import Client, Node, Request, curl, httpx_client, is_whole, parse
from tests.support.edge.raw_cases import RAW_CASES
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import START_SECONDS, Stub
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Client]]:
    """The clients, by their names in the table."""
    node = Node()
    common: dict[str, Any] = {"trust_env": False, "timeout": START_SECONDS}
    with httpx.Client(**common) as http1, httpx.Client(http1=False, http2=True, **common) as http2:
        yield {
            "curl HTTP/1.1": curl("--http1.1"),
            "curl HTTP/2": curl("--http2-prior-knowledge"),
            "httpx HTTP/1.1": httpx_client(http1),
            "httpx HTTP/2": httpx_client(http2),
            "fetch": node,
        }
    node.close()


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.clients],
)
def test_every_client_gets_the_expected_answer(
    request: pytest.FixtureRequest, clients: dict[str, Client], stub: Stub, case: Case, name: str
) -> None:
    edge: RunningEdge = request.getfixturevalue(case.edge)
    assert isinstance(case.sent, Request)
    assert_expected(
        case, clients[name](edge.rest_url, case.sent), stub, to_head=case.sent.method == "HEAD"
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in RAW_CASES])
def test_raw_bytes_get_the_expected_answer(
    request: pytest.FixtureRequest, stub: Stub, case: Case
) -> None:
    edge: RunningEdge = request.getfixturevalue(case.edge)
    assert isinstance(case.sent, bytes)
    answer = exchange(edge, case.sent)
    assert_expected(case, answer, stub)
    if case.slug:
        assert_logged(edge, answer)
    for _, metadata in stub.seen:
        assert metadata["x-evershell-edge"] == "rest"


def assert_expected(case: Case, answer: Answer, stub: Stub, *, to_head: bool = False) -> None:
    """Raises AssertionError unless the answer is the one in the row."""
    error = check(answer, to_head=to_head)
    assert answer.status == case.status, answer
    if error:
        assert error["code"] == case.slug
        assert case.says in error["message"]
        if case.reaches_service and "error_" in str(case.sent):
            assert error["details"] == {"n": 1}
    else:
        assert (error is None) == (case.slug is None)
        assert case.says in answer.body.decode()
    for header, value in case.headers.items():
        assert answer.header(header) == value, header
    assert case.reaches_service or not stub.seen


def exchange(edge: RunningEdge, sent: bytes) -> Answer:
    """Sends bytes, which the edge need not read to the end, and returns the answer."""
    with socket.create_connection(
        ("127.0.0.1", edge.settings.rest_port), timeout=START_SECONDS
    ) as connection:
        received = b""
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        while True:
            try:
                chunk = connection.recv(65536)
            except ConnectionResetError:
                return parse(received)
            received += chunk
            if not chunk or is_whole(received):
                return parse(received)


def assert_logged(edge: RunningEdge, answer: Answer) -> None:
    """The edge logs the request id, even of a request that it could not read."""
    request_id = answer.header("x-request-id")
    assert request_id
    log = edge.settings.admin_socket.parent / "envoy.log"
    eventually(lambda: request_id in log.read_text())
