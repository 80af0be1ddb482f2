"""Holds of an organization, and what they refuse."""

from collections.abc import Coroutine
from typing import Any

import pytest

from evershell.core import tasks, workspaces
from evershell.core.caller import Caller
from evershell.core.change import Hold, IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.hold import HoldOrg, get_hold, hold_org, release_org
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import NOW, ORG, USER, World, caller


async def hold(world: World, reason: str = "gone wrong", by: Caller | None = None) -> Hold:
    request = HoldOrg(reason=reason, origin=Origin())
    held, _ = await hold_org(by or caller(), request, world.store, world.clock)
    return held


async def submit(world: World, workspace_id: str, by: Caller | None = None, key: str = "") -> str:
    request = tasks.SubmitTask(
        workspace_id=workspace_id,
        description="true",
        origin=Origin(),
        key=IdempotencyKey(key, b"same") if key else None,
    )
    task = await tasks.submit_task(
        by or caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )
    return task.id


async def create(world: World, key: str = "") -> str:
    made = await workspaces.create_workspace(
        caller(),
        "",
        Origin(),
        world.store,
        world.clock,
        IdempotencyKey(key, b"same") if key else None,
    )
    return made.id


async def resume(world: World, workspace_id: str, by: Caller | None = None) -> None:
    await workspaces.resume_workspace(
        by or caller(), workspace_id, Origin(), world.store, world.clock
    )


async def failure_of(call: Coroutine[Any, Any, object]) -> Failure:
    with pytest.raises(Failure) as raised:
        await call
    return raised.value


async def test_a_hold_names_its_first_caller(world: World) -> None:
    first = await hold(world)
    assert first == Hold(org_id=ORG, held_by=USER, held_since=NOW, reason="gone wrong")
    world.clock.advance(5)
    assert await hold(world, "again", caller(actor_id="user_2")) == first
    assert await get_hold(caller("workspace:read:own"), world.store) == first
    assert await get_hold(caller(org_id="org_b"), world.store) is None


@pytest.mark.parametrize("status", [WorkspaceStatus.STOPPED, WorkspaceStatus.IDLE])
async def test_a_hold_refuses_new_tasks_and_new_agents(
    world: World, status: WorkspaceStatus
) -> None:
    at = await world.add(status)
    await hold(world)
    calls = [submit(world, at.id), create(world), resume(world, at.id)]
    for call in calls:
        failure = await failure_of(call)
        assert failure.slug == "org_on_hold"
        assert failure.details == {
            "org_id": ORG,
            "held_by": USER,
            "held_since": NOW.isoformat().replace("+00:00", "Z"),
            "hold_reason": "gone wrong",
        }
        assert USER in failure.message and "gone wrong" in failure.message
    assert await world.workspace(at.id) == at


async def test_a_hold_lets_running_tasks_be_cancelled_and_stopped(world: World) -> None:
    busy, running = await world.add_busy()
    other, _ = await world.add_busy()
    await hold(world)
    assert (await world.cancel(busy.id)).outcome == "accepted"
    await world.end(busy.id, running.id)
    stopped = await workspaces.stop_workspace(
        caller(), other.id, Origin(), world.store, world.agents, world.clock
    )
    assert stopped.status is WorkspaceStatus.STOPPING


async def test_after_the_release_everything_works_again(world: World) -> None:
    idle = await world.add()
    await hold(world)
    for _ in range(2):
        await release_org(caller(), Origin(), world.store)
    assert await get_hold(caller(), world.store) is None
    await submit(world, idle.id)
    await create(world)


async def test_a_hold_is_checked_after_the_access(world: World) -> None:
    theirs = await world.add(created_by_user_id="user_2")
    await hold(world)
    own = caller("tasks:write:own")
    assert (await failure_of(submit(world, "ws_unknown"))).slug == "workspace_not_found"
    assert (await failure_of(submit(world, theirs.id, own))).slug == "permission_denied"
    assert (await failure_of(resume(world, theirs.id, own))).slug == "permission_denied"


async def test_a_repeat_of_an_earlier_call_gets_its_answer(world: World) -> None:
    idle = await world.add()
    task_id, made = await submit(world, idle.id, key="a"), await create(world, key="b")
    await hold(world)
    assert await submit(world, idle.id, key="a") == task_id
    assert await create(world, key="b") == made
    for call in (submit(world, idle.id, key="c"), create(world, key="d")):
        assert (await failure_of(call)).slug == "org_on_hold"


@pytest.mark.parametrize(
    "scopes", [("workspace:write", "tasks:write"), ("org:hold:own",), ("org:*",)]
)
async def test_a_hold_needs_its_scope(world: World, scopes: tuple[str, ...]) -> None:
    by = caller(*scopes)
    for call in (hold(world, by=by), release_org(by, Origin(), world.store)):
        failure = await failure_of(call)
        assert (failure.slug, failure.details["required"]) == ("permission_denied", ["org:hold"])
    assert await get_hold(caller(), world.store) is None


async def test_a_hold_can_cancel_what_runs(world: World) -> None:
    creators = (USER, "user_2", None)
    running = [await world.add_busy(created_by_user_id=user_id) for user_id in creators]
    other, untouched = await world.add_busy(org_id="org_b")
    await world.cancel(running[0][0].id)
    request = HoldOrg(reason="gone wrong", cancel_running=True, origin=Origin("req_h"))
    _, cancelled = await hold_org(caller(), request, world.store, world.clock)
    assert (cancelled.accepted, cancelled.already_requested, cancelled.remaining) == (2, 1, 0)
    for at, task in running[1:]:
        cancel = (await world.task(at.id, task.id)).cancel
        assert cancel is not None
        assert (cancel.requested_by, cancel.reason, cancel.request_id) == (
            USER,
            "gone wrong",
            "req_h",
        )
    assert (await world.task(other.id, untouched.id)).cancel is None
    _, again = await hold_org(caller(), request, world.store, world.clock)
    assert (again.accepted, again.already_requested, again.remaining) == (0, 3, 0)


@pytest.mark.parametrize("scope", ["workspace:write:own", "workspace:read"])
async def test_a_hold_that_cancels_needs_the_scope_for_it(world: World, scope: str) -> None:
    await world.add_busy()
    request = HoldOrg(cancel_running=True, origin=Origin())
    failure = await failure_of(
        hold_org(caller("org:hold", scope), request, world.store, world.clock)
    )
    assert (failure.slug, failure.details["required"]) == (
        "permission_denied",
        ["workspace:write"],
    )
    assert await get_hold(caller(), world.store) is None
