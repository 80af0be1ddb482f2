"""Sends every row of the tables of cases."""

import contextlib
import socket

import pytest

from tests.support.edge.answers import Answer, check
from tests.support.edge.cases import CASES, RAW_CASES, Case
from tests.support.edge.clients import Request, curl, is_whole, parse
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import START_SECONDS, Stub
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("case", "http2"),
    [
        pytest.param(case, http2, id=f"{case}-{'HTTP/2' if http2 else 'HTTP/1.1'}")
        for case in CASES
        for http2 in (False, True)
        if not (http2 and case.http1_only)
    ],
)
def test_a_request_gets_the_expected_answer(
    request: pytest.FixtureRequest, stub: Stub, case: Case, http2: bool
) -> None:
    edge: RunningEdge = request.getfixturevalue(case.edge)
    assert isinstance(case.sent, Request)
    answer = curl(edge.rest_url, case.sent, http2=http2)
    assert_expected(case, answer, stub, to_head=case.sent.method == "HEAD")


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
    """Checks that the edge logs the request id, even of a request that it could not read."""
    request_id = answer.header("x-request-id")
    assert request_id
    log = edge.settings.admin_socket.parent / "envoy.log"
    eventually(lambda: request_id in log.read_text())
