"""How the library calls the control plane about children of the agent's task."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
import pytest
import structlog
from evershell.agent.v1.runtime_service_pb2 import SubmitChildRequest
from evershell.workspace.v1 import task_pb2
from grpc.aio import Metadata

from evershell.agents import ChildRefusedError, children, submit_task
from evershell.agents.lease import Lease
from evershell.agents.runtime_client import ControlPlaneClock, RuntimeClient, RuntimeCredential
from evershell.agents.session import Session
from evershell.agents.shutdown import Shutdown
from evershell.core.task import TaskStatus
from evershell.pod.tokens import SECRET_BYTES, SLUG_TRAILER


def failure(code: grpc.StatusCode, slug: str = "") -> grpc.aio.AioRpcError:
    trailers = Metadata((SLUG_TRAILER, slug)) if slug else Metadata()
    return grpc.aio.AioRpcError(code, Metadata(), trailers, "why")


class Stub:
    """A worker that answers calls about children with these answers, in order."""

    def __init__(self, answers: Sequence[task_pb2.Task | Exception]) -> None:
        self.answers = list(answers)
        self.requests: list[Any] = []

    async def _answer(self, request: Any, **_: Any) -> task_pb2.Task:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    SubmitChild = GetChild = CancelChild = _answer


async def _no_work(_: Any) -> None:
    raise AssertionError("no task was assigned")


def begin(*answers: task_pb2.Task | Exception) -> Stub:
    stub, log, shutdown = Stub(answers), structlog.get_logger(), Shutdown()
    credential = RuntimeCredential("ws_1", 1, "00" * SECRET_BYTES, ControlPlaneClock())
    session = Session(_no_work, shutdown, lambda: None, log)
    stubs = {"127.0.0.1:1": cast("Any", stub)}
    client = RuntimeClient(stubs, credential, Lease(), shutdown, session, log)
    children.begin("task_p", client.call_about_child)
    return stub


def answer(status: str = "running", **fields: Any) -> task_pb2.Task:
    number = task_pb2.Task.Status.Value(status)
    return task_pb2.Task(id="task_c", workspace_id="ws_2", status=number, **fields)


async def test_a_submission_is_repeated_with_its_key_until_it_is_answered() -> None:
    unavailable = failure(grpc.StatusCode.UNAVAILABLE, "unavailable")
    stub = begin(failure(grpc.StatusCode.UNAVAILABLE), unavailable, answer(), answer())
    child = await submit_task("ws_2", "ls", metadata={"a": "b"}, max_duration_seconds=1.5)
    first, *repeats = stub.requests
    assert repeats == [first, first]
    assert (first.parent_task_id, first.workspace_id, first.description) == (
        "task_p",
        "ws_2",
        "ls",
    )
    assert (first.metadata, first.limits.max_duration.ToMilliseconds()) == ({"a": "b"}, 1500)
    assert (child.id, child.status) == ("task_c", TaskStatus.RUNNING)
    await submit_task("ws_2", "ls")
    assert stub.requests[-1].idempotency_key not in ("", first.idempotency_key)


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "workspace_busy"),
        # This refusal must not end the agent, because the agent's token is valid.
        (grpc.StatusCode.PERMISSION_DENIED, "permission_denied"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited"),
        # A worker of an earlier version does not have the method.
        (grpc.StatusCode.UNIMPLEMENTED, "not_found"),
    ],
)
async def test_a_refusal_is_not_repeated(code: grpc.StatusCode, slug: str) -> None:
    begin(failure(code, "" if slug == "not_found" else slug))
    with pytest.raises(ChildRefusedError, match="why") as raised:
        await submit_task("ws_2", "ls")
    assert raised.value.code == slug


async def test_the_end_of_a_child_is_waited_for_and_calls_are_made_one_at_a_time() -> None:
    stub = begin(answer(), answer(), answer("completed", result="done"), answer("cancelled"))
    child = await submit_task("ws_2", "ls")
    ended = await child.wait()
    assert (ended.status, ended.result) == (TaskStatus.COMPLETED, "done")
    assert (await child.cancel("enough", force_after_seconds=0.0)).status is TaskStatus.CANCELLED
    cancel = stub.requests[-1]
    assert (cancel.task_id, cancel.reason) == ("task_c", "enough")
    assert cancel.HasField("force_after")


async def test_tools_in_threads_and_tasks_of_asyncio_have_the_parent() -> None:
    stub = begin(answer(), answer())
    loop = asyncio.get_running_loop()

    def tool() -> None:
        asyncio.run_coroutine_threadsafe(submit_task("ws_2", "thread"), loop).result(10)

    await asyncio.gather(asyncio.to_thread(tool), submit_task("ws_2", "task"))
    assert {request.parent_task_id for request in stub.requests} == {"task_p"}
    assert all(isinstance(request, SubmitChildRequest) for request in stub.requests)


async def test_outside_of_a_task_nothing_can_be_submitted() -> None:
    with pytest.raises(RuntimeError, match="while it works on the task"):
        await submit_task("ws_2", "ls")
