"""Which calls are repeated, and when. A cancellation without a task id is never repeated."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import workspace_pb2, workspace_service_pb2

from evershell.client import CancelOutcome
from evershell.core import errors
from evershell.core.errors import Failure
from tests.unit.client.fake_channel import TIMEOUT_SECONDS, Service, failed, start

Reply = workspace_service_pb2.CancelTaskResponse
ATTEMPTS = 4
UNREACHABLE = errors.agent_unreachable("ws_1", "task_1", "recorded", intent_recorded=True)
LIMITED = errors.rate_limited("Too many.", 2)


@pytest.mark.parametrize("failure", [errors.unavailable(), LIMITED, UNREACHABLE])
def test_a_cancellation_without_a_task_id_is_never_repeated(
    service: Service, failure: Failure
) -> None:
    call = start(service.client.cancel, "ws_1")
    service.take("CancelTask")[1].fail(failure)
    assert failed(call).code == failure.slug
    assert len(service.channel.timeouts) == 1
    assert service.clock.time() == 0


@pytest.mark.parametrize(("failure", "pause_seconds"), [(errors.unavailable(), 1), (LIMITED, 2)])
def test_a_cancellation_with_a_task_id_is_repeated_after_the_given_time(
    service: Service, failure: Failure, pause_seconds: float
) -> None:
    call = start(service.client.cancel, "ws_1", "task_1")
    service.take("CancelTask")[1].fail(failure)
    service.take("CancelTask")[1].answer(Reply(outcome=Reply.already_requested))
    assert call.result(5).outcome is CancelOutcome.ALREADY_REQUESTED
    assert service.channel.timeouts == [TIMEOUT_SECONDS, TIMEOUT_SECONDS - pause_seconds]


def test_agent_unreachable_is_not_repeated(service: Service) -> None:
    call = start(service.client.cancel, "ws_1", "task_1")
    service.take("CancelTask")[1].fail(UNREACHABLE)
    assert failed(call).code == "agent_unreachable"
    assert len(service.channel.timeouts) == 1


NOT_IDEMPOTENT: dict[str, Callable[[Any], Any]] = {
    "StopWorkspace": lambda client: client.stop_workspace("ws_1"),
    "ResumeWorkspace": lambda client: client.resume_workspace("ws_1"),
    "ReleaseOrg": lambda client: client.release(),
}


@pytest.mark.parametrize("failure", [errors.unavailable(), LIMITED])
@pytest.mark.parametrize("rpc", NOT_IDEMPOTENT)
def test_a_call_whose_repeat_could_have_another_effect_is_not_repeated(
    service: Service, rpc: str, failure: Failure
) -> None:
    call = start(NOT_IDEMPOTENT[rpc], service.client)
    service.take(rpc)[1].fail(failure)
    assert failed(call).code == failure.slug
    assert len(service.channel.timeouts) == 1


@pytest.mark.parametrize(
    ("rpc", "call", "reply"),
    [
        (
            "SubmitTask",
            lambda client, **key: client.submit_task("ws_1", "true", **key),
            workspace_service_pb2.SubmitTaskResponse(task_id="task_1"),
        ),
        (
            "CreateWorkspace",
            lambda client, **key: client.create_workspace(**key),
            workspace_pb2.Workspace(id="ws_1"),
        ),
    ],
)
def test_a_creation_is_repeated_with_one_idempotency_key(
    service: Service, rpc: str, call: Callable[..., Any], reply: Any
) -> None:
    keys = []
    for _ in range(2):
        made = start(call, service.client)
        service.take(rpc)[1].fail(errors.unavailable())
        keys.append(service.metadata["idempotency-key"])
        service.take(rpc)[1].answer(reply)
        assert made.result(5)
        assert service.metadata["idempotency-key"] == keys[-1]
    assert len(set(keys)) == 2 and all(map(str.isprintable, keys))
    made = start(call, service.client, idempotency_key="nightly")
    service.take(rpc)[1].answer(reply)
    assert made.result(5)
    assert service.metadata["idempotency-key"] == "nightly"


def test_a_read_is_repeated_up_to_the_limit(service: Service) -> None:
    call = start(service.client.get_workspace, "ws_1")
    for _ in range(ATTEMPTS):
        service.take("GetWorkspace")[1].fail_without_details(grpc.StatusCode.UNAVAILABLE)
    assert failed(call).code == "unavailable"
    limits = [limit for limit in service.channel.timeouts if limit is not None]
    assert len(limits) == ATTEMPTS and limits == sorted(limits, reverse=True)
    assert len(set(limits)) == ATTEMPTS


def test_a_read_is_not_repeated_after_its_timeout(service: Service) -> None:
    call = start(service.client.get_task, "ws_1", "task_1")
    service.take("GetTask")[1].fail(
        Failure("unavailable", "Later.", retry_after_seconds=TIMEOUT_SECONDS)
    )
    assert failed(call).retry_after == TIMEOUT_SECONDS
    assert len(service.channel.timeouts) == 1


def test_a_callable_supplies_the_credential_of_each_attempt() -> None:
    tokens = iter(["eyJ.one", "eyJ.two"])
    service = Service(lambda: next(tokens))
    call = start(service.client.get_workspace, "ws_1")
    service.take("GetWorkspace")[1].fail(errors.unavailable())
    assert service.metadata["authorization"] == "Bearer eyJ.one"
    service.take("GetWorkspace")[1].answer(workspace_pb2.Workspace(id="ws_1"))
    assert call.result(5).id == "ws_1"
    assert service.metadata["authorization"] == "Bearer eyJ.two"
