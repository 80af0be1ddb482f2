"""Calls with an idempotency key."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from evershell.core import tasks, workspaces
from evershell.core.bulk import BulkResult
from evershell.core.caller import Caller, CredentialKind
from evershell.core.cancel_tasks import CancelTasks, cancel_tasks
from evershell.core.change import IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.event import AuditFilter, Origin
from evershell.core.task import Task, TaskStarted, TaskStatus
from evershell.core.task_filter import AllTasks
from evershell.core.tasks import SubmitTask
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.store.audit import audit_entry
from tests.support.store.examples import permission
from tests.support.world import World, caller

KEY = IdempotencyKey("key", b"request")
OTHER_REQUEST = IdempotencyKey("key", b"another request")


async def submit(
    world: World,
    workspace_id: str,
    key: IdempotencyKey | None = KEY,
    by: Caller | None = None,
    **fields: Any,
) -> Task:
    origin = Origin(audit=audit_entry(rpc="SubmitTask", workspace_id=workspace_id))
    request = SubmitTask(
        workspace_id=workspace_id, description="ls", key=key, **{"origin": origin, **fields}
    )
    return await tasks.submit_task(
        by or caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )


async def create(
    world: World, key: IdempotencyKey | None = KEY, by: Caller | None = None
) -> Workspace:
    origin = Origin(audit=audit_entry(rpc="CreateWorkspace"))
    return await workspaces.create_workspace(
        by or caller(), "n", origin, world.store, world.clock, key
    )


async def failure(call: Awaitable[object]) -> Failure:
    with pytest.raises(Failure) as raised:
        await call
    return raised.value


async def recorded(world: World) -> list[tuple[str, str, str, str]]:
    found = await world.store.list_audit_entries(permission(), AuditFilter(), None, 100)
    return [(entry.rpc, entry.outcome, entry.workspace_id, entry.task_id) for entry in found]


async def count(world: World, workspace_id: str) -> int:
    return len(await world.store.list_tasks(workspace_id, None, 100))


async def test_a_repeated_submission_gets_the_first_answer(world: World) -> None:
    """The answer is the same during the task, after its end, and in any state of the workspace."""
    idle = await world.add()
    first = await submit(world, idle.id)
    assert await submit(world, idle.id) == first
    await world.commit(idle.id, first.id, TaskStarted())
    assert (await submit(world, idle.id)).status is first.status is TaskStatus.DELIVERED
    await world.end(idle.id, first.id)
    assert (await submit(world, idle.id)).id == first.id
    for status in WorkspaceStatus:
        await world.set_status(idle.id, status)
        assert (await submit(world, idle.id)).status is TaskStatus.DELIVERED
    assert await count(world, idle.id) == 1
    assert world.agents.started == [first.id]
    assert set(await recorded(world)) == {("SubmitTask", "ok", idle.id, first.id)}


async def test_a_repeated_creation_gets_the_first_answer(world: World) -> None:
    first = await create(world)
    world.clock.advance(60)
    await world.set_status(first.id, WorkspaceStatus.FAILED)
    assert await create(world) == first
    assert len(await world.store.list_workspaces(permission(), None, 10)) == 1
    assert set(await recorded(world)) == {("CreateWorkspace", "ok", first.id, "")}


@pytest.mark.parametrize("repeat", [submit, lambda world, _id, key: create(world, key)])
async def test_a_key_of_another_request_is_a_conflict(
    world: World, repeat: Callable[[World, str, IdempotencyKey], Awaitable[Any]]
) -> None:
    """The workspace may be busy or failed, and the key may have been used with another method."""
    idle = await world.add()
    await submit(world, idle.id)
    conflict = await failure(repeat(world, idle.id, OTHER_REQUEST))
    assert (conflict.slug, conflict.details) == (
        "idempotency_conflict",
        {"idempotency_key": "key"},
    )
    assert "2026-01-02T03:04:05+00:00" in conflict.message
    await world.set_status(idle.id, WorkspaceStatus.FAILED)
    assert (await failure(repeat(world, idle.id, OTHER_REQUEST))).slug == "idempotency_conflict"


async def test_a_repeat_needs_the_permission_of_the_call(world: World) -> None:
    """A key reveals nothing to callers who have no access to the workspace."""
    idle = await world.add()
    first, made = await submit(world, idle.id), await create(world, IdempotencyKey("k", b""))
    own = caller("tasks:write:own", "workspace:write:own", actor_id="user_2")
    for key in (KEY, OTHER_REQUEST):
        assert (await failure(submit(world, idle.id, key, own))).slug == "permission_denied"
        reader = caller("workspace:read")
        assert (await failure(submit(world, idle.id, key, reader))).slug == "permission_denied"
        elsewhere = caller(org_id="org_b")
        assert (await failure(submit(world, idle.id, key, elsewhere))).slug == "workspace_not_found"
    assert (await submit(world, idle.id)).id == first.id
    assert await create(world, IdempotencyKey("k", b"")) == made


async def test_a_key_belongs_to_its_caller(world: World) -> None:
    """If another user or an API key repeats the call, it counts as a new call."""
    made = await create(world)
    for other in (caller(actor_id="user_2"), caller(kind=CredentialKind.API_KEY)):
        own = await create(world, by=other)
        assert own.id != made.id
        assert await create(world, by=other) == own
    busy, _ = await world.add_busy()
    conflict = await failure(submit(world, busy.id, OTHER_REQUEST))
    assert conflict.slug == "idempotency_conflict"
    refused = await failure(submit(world, busy.id, OTHER_REQUEST, caller(actor_id="user_3")))
    assert refused.slug == "workspace_busy"


async def test_a_failed_delivery_is_answered_again(world: World) -> None:
    idle = await world.add()
    world.agents.reachable = False
    first = await failure(submit(world, idle.id))
    assert first.message.endswith("Submit it again later, with a new idempotency key.")
    world.agents.reachable = True
    again = await failure(submit(world, idle.id))
    assert (again.slug, again.message, again.details) == (
        "agent_unreachable",
        first.message,
        first.details,
    )
    assert await count(world, idle.id) == 1
    assert len(world.agents.started) == 1


async def cancel_all(
    world: World, key: IdempotencyKey | None = KEY, by: Caller | None = None, **fields: Any
) -> BulkResult:
    origin = Origin(audit=audit_entry(rpc="CancelTasks"))
    request = CancelTasks(wanted=AllTasks(), key=key, origin=origin, **fields)
    return await cancel_tasks(by or caller(), request, world.store, world.clock)


async def test_a_repeated_cancellation_of_many_tasks_gets_the_first_counts(world: World) -> None:
    """A task that was submitted since then is not cancelled."""
    await cancel_all(world, IdempotencyKey("none", b""))
    cancelled = [task for _, task in [await world.add_busy() for _ in range(2)]]
    await cancel_all(world, dry_run=True)
    first = await cancel_all(world)
    assert (first.matched, first.accepted, first.already_requested) == (2, 2, 0)
    assert [each.task_id for each in first.results] == [each.id for each in cancelled]
    busy, later = await world.add_busy()
    assert await cancel_all(world) == first
    assert (await cancel_all(world, IdempotencyKey("none", b""))).matched == 0
    assert (await world.task(busy.id, later.id)).cancel is None
    assert (await failure(cancel_all(world, OTHER_REQUEST))).slug == "idempotency_conflict"
    refused = await failure(cancel_all(world, by=caller("workspace:read")))
    assert refused.slug == "permission_denied"
    assert (await cancel_all(world, None)).accepted == 1
    outcomes = Counter(outcome for _, outcome, *_ in await recorded(world))
    assert outcomes == {"ok": 5, "dry_run": 1}


class Crash(Exception):
    """Stands for the death of a worker."""


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("point", ["start_task", "get_answer"])
async def test_a_repeat_completes_a_call_that_died(
    world: World, monkeypatch: pytest.MonkeyPatch, *, point: str, reachable: bool
) -> None:
    """The call dies before the delivery, or between the delivery and the answer."""
    idle = await world.add()
    world.agents.reachable = reachable

    async def die(*_: object) -> Any:
        raise Crash

    with monkeypatch.context() as patch:
        target: Any = world.agents if point == "start_task" else world.store
        patch.setattr(target, {"get_answer": "record_answer"}.get(point, point), die)
        with pytest.raises(Crash):
            await submit(world, idle.id)
    (task,) = await world.store.list_tasks(idle.id, None, 10)
    assert len(world.agents.started) == (point != "start_task")
    for _ in range(2):
        if reachable:
            assert (await submit(world, idle.id)).id == task.id
        else:
            assert (await failure(submit(world, idle.id))).details["task_id"] == task.id
    assert await count(world, idle.id) == 1
    assert world.agents.started == [task.id]
    expected = TaskStatus.DELIVERED if reachable else TaskStatus.DELIVERY_FAILED
    assert (await world.task(idle.id, task.id)).status is expected


async def test_a_repeat_during_the_first_call_gets_the_same_answer(world: World) -> None:
    """Both calls get the answer that is stored first."""
    idle = await world.add()
    first_waits, repeated = asyncio.Event(), asyncio.Event()

    async def wait_for_the_repeat(at: Workspace, task: Task) -> None:
        world.agents.meanwhile = start
        first_waits.set()
        await repeated.wait()

    async def start(at: Workspace, task: Task) -> None:
        await world.commit(at.id, task.id, TaskStarted())

    world.agents.meanwhile = wait_for_the_repeat
    first = asyncio.create_task(submit(world, idle.id))
    await first_waits.wait()
    repeat = await submit(world, idle.id)
    assert repeat.status is TaskStatus.RUNNING
    await world.end(idle.id, repeat.id)
    repeated.set()
    answered = await first
    assert (answered.id, answered.status) == (repeat.id, TaskStatus.RUNNING)
