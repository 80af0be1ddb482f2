"""Metadata and timeouts of single methods, and the answers beside the results."""

from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import task_pb2, workspace_pb2

from evershell.client import Answer, ConfigurationError, WorkspaceNotFoundError
from evershell.core import errors
from tests.support.fake_channel import TIMEOUT_SECONDS, Service, start


def test_metadata_is_added_to_that_of_the_client(service: Service) -> None:
    one = service.client.with_options(metadata={"x-team": "blue", "x-plan": "free"})
    both = one.with_options(metadata={"x-plan": "paid", "x-more": "1"})
    call = start(both.get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    found = {name: value for name, value in service.metadata.items() if name.startswith("x-")}
    assert found == {"x-team": "blue", "x-plan": "paid", "x-more": "1"}
    assert "x-team" not in dict(service.client._headers())


@pytest.mark.parametrize(
    "name",
    ["Authorization", "authorization", "traceparent", "idempotency-key", "x-request-id",
     "grpc-timeout", "x-evershell-edge", "data-bin", "", "a b", "a:b"],
)  # fmt: skip
def test_reserved_names_are_refused(service: Service, name: str) -> None:
    with pytest.raises(ConfigurationError):
        service.client.with_options(metadata={name: "value"})


@pytest.mark.parametrize("value", ["a\nsecret", "ä secret", " secret", "\x00secret"])
def test_values_that_are_not_text_are_refused_and_not_shown(service: Service, value: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        service.client.with_options(metadata={"x-key": value})
    assert "secret" not in str(raised.value)


def test_a_method_has_a_timeout_of_its_own(service: Service) -> None:
    client = service.client.with_options(timeouts={"GetTask": 2, "WatchEvents": 3})
    for options in (
        {},
        {"max_retries": 1},
        {"timeout": 7},
        {"timeout": 7, "timeouts": {"GetTask": 1}},
    ):
        changed: Any = client.with_options(**options)
        for call, rpc, reply in (
            (lambda: changed.get_task("ws_1", "task_1"), "GetTask", task_pb2.Task()),
            (lambda: changed.get_workspace("ws_1"), "GetWorkspace", workspace_pb2.Workspace()),
        ):
            made = start(call)
            service.take(rpc)[1].answer(reply)
            made.result(5)
    # A timeout of all calls replaces those of single methods.
    assert service.channel.timeouts == [2, TIMEOUT_SECONDS] * 2 + [7, 7, 1, 7]
    assert client._watch("ws_1", 0, None, None, 60)._connect_seconds == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": float("nan")}, "must be a number"),
        ({"timeouts": {"GetTask": 0}}, "timeout must be more than 0"),
        ({"timeouts": {"GetTask": float("nan")}}, "must be a number"),
        ({"timeouts": {"get_task": 1}}, "There is no method get_task"),
        ({"max_retries": -1}, "max_retries must not be negative"),
        ({"metadata": {"x-team": 5}}, "is not printable ASCII"),
        ({"traceparent": "ü"}, "traceparent is not printable ASCII"),
        ({"credential": "a b"}, "The credential is not valid"),
    ],
)
def test_options_that_are_not_valid_are_refused(
    service: Service, options: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        service.client.with_options(**options)


def test_an_answer_has_the_request_id_and_the_metadata(service: Service) -> None:
    answers: list[Answer] = []
    client = service.client.with_options(on_answer=answers.append)
    call = start(client.get_workspace, "ws_1")
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    (answer,) = answers
    assert (answer.rpc, answer.request_id, answer.error) == ("GetWorkspace", "request_1", None)
    assert answer.metadata["x-request-id"] == "request_1"


def test_each_failed_attempt_has_an_answer(service: Service) -> None:
    answers: list[Answer] = []
    client = service.client.with_options(on_answer=answers.append, max_retries=1)
    call = start(client.get_workspace, "ws_1")
    service.take("GetWorkspace")[1].fail_without_details(grpc.StatusCode.UNAVAILABLE)
    service.clock.sleep_for(5)
    service.take("GetWorkspace")[1].fail(errors.workspace_not_found("ws_1"))
    error = call.exception(5)
    assert isinstance(error, WorkspaceNotFoundError)
    assert [answer.request_id for answer in answers] == ["", "request_1"]
    assert answers[1].error is error and "grpc-status-details-bin" in answers[1].metadata
