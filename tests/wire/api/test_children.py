"""The calls of agents about children of their task, on a real server."""

from typing import Any

from evershell.agent.v1 import runtime_service_pb2 as messages
from evershell.workspace.v1 import task_pb2
from google.protobuf.message import Message

from evershell.core.event import AuditEntry
from evershell.pod.tokens import SLUG_TRAILER
from tests.support.waiting import eventually_async
from tests.support.world import ORG, World
from tests.wire.api.running import INTERNAL, Failed, Running, agent_bearer, bearer
from tests.wire.api.test_auditing import stored


async def call(
    server: Running, workspace_id: str, method: str, request: Message
) -> task_pb2.Task | Failed:
    answer = await server.raw(
        INTERNAL + method, agent_bearer(workspace_id), request.SerializeToString()
    )
    return answer if isinstance(answer, Failed) else task_pb2.Task.FromString(answer)


def who(entry: AuditEntry) -> tuple[str, str, str, str, str]:
    return entry.rpc, entry.org_id, entry.actor_id, entry.credential_kind, entry.outcome


async def test_a_child_is_submitted_read_cancelled_and_audited(
    server: Running, world: World
) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    submission = messages.SubmitChildRequest(
        parent_task_id=parent.id, idempotency_key="k", workspace_id=into.id, description="ls"
    )
    child = await call(server, at.id, "SubmitChild", submission)
    assert isinstance(child, task_pb2.Task)
    assert (child.parent_task_id, child.submitted_by) == (parent.id, f"agent:{at.id}")
    assert await call(server, at.id, "SubmitChild", submission) == child
    names: dict[str, Any] = {
        "parent_task_id": parent.id,
        "workspace_id": into.id,
        "task_id": child.id,
    }
    assert await call(server, at.id, "GetChild", messages.GetChildRequest(**names)) == child
    cancelled = await call(server, at.id, "CancelChild", messages.CancelChildRequest(**names))
    assert isinstance(cancelled, task_pb2.Task)
    assert cancelled.cancel_requested_by == f"agent:{at.id}"
    by_agent = ORG, f"agent:{at.id}", "agent"
    found = sorted({(*who(each), each.task_id) for each in await stored(world)})
    assert found == [
        ("CancelChild", *by_agent, "accepted", child.id),
        ("SubmitChild", *by_agent, "ok", child.id),
    ]
    assert server.audit.entries == []


async def test_a_refusal_has_a_slug_and_is_audited_with_its_agent(
    server: Running, world: World
) -> None:
    at, parent = await world.add_busy()
    other = await world.add(created_by_user_id="user_8")
    refused = await call(
        server,
        at.id,
        "SubmitChild",
        messages.SubmitChildRequest(
            parent_task_id=parent.id, idempotency_key="k", workspace_id=other.id, description="ls"
        ),
    )
    assert isinstance(refused, Failed)
    assert refused.trailers[SLUG_TRAILER] == "permission_denied"
    await eventually_async(lambda: server.audit.entries)
    (entry,) = server.audit.entries
    assert who(entry) == ("SubmitChild", ORG, f"agent:{at.id}", "agent", "permission_denied")
    assert entry.workspace_id == other.id
    # A field that is not valid does not end the epoch, unlike a breach of the agent's rules.
    for key in ("", "x" * 65, "a\n"):
        invalid = messages.SubmitChildRequest(parent_task_id=parent.id, idempotency_key=key)
        answer = await call(server, at.id, "SubmitChild", invalid)
        assert isinstance(answer, Failed) and answer.slug == "validation_error"
    assert (await world.workspace(at.id)).agent_breach is None


async def test_an_agent_cannot_take_the_idempotency_key_of_a_caller(
    server: Running, world: World
) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    submission = messages.SubmitChildRequest(
        parent_task_id=parent.id, idempotency_key="k", workspace_id=into.id, description="ls"
    )
    assert isinstance(await call(server, at.id, "SubmitChild", submission), task_pb2.Task)
    idle = await world.add()
    request = b"\x0a" + bytes([len(idle.id)]) + idle.id.encode() + b"\x12\x02ls"
    public = "/evershell.workspace.v1.WorkspaceService/SubmitTask"
    answer = await server.raw(public, bearer(idempotency_key="k"), request)
    assert isinstance(answer, bytes)


async def test_a_caller_cannot_use_the_calls_of_agents(server: Running) -> None:
    for method in ("SubmitChild", "GetChild", "CancelChild"):
        answer = await server.raw(INTERNAL + method, bearer())
        assert isinstance(answer, Failed) and answer.slug == "unauthenticated"
