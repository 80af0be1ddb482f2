"""CancelTask: its outcomes, the order of its checks, and its wait for the end of the task."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import deadline
from evershell.core.caller import Caller
from evershell.core.cancel_task import MAX_WAIT_SECONDS, CancelResult, CancelTask, Outcome
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Origin
from evershell.core.task import CancelIntent, Task, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.core.workspaces import delete_workspace
from tests.support.world import USER, World, caller


async def test_the_first_call_records_signals_and_is_accepted(world: World) -> None:
    busy, running = await world.add_busy()
    world.clock.advance(5)
    result = await world.cancel(busy.id, reason="too slow")
    assert (result.workspace_id, result.outcome) == (busy.id, Outcome.ACCEPTED)
    recorded = CancelIntent(
        requested_by=USER,
        credential_kind="session",
        requested_at=world.clock(),
        reason="too slow",
        request_id="req_c",
    )
    assert result.task == replace(running, cancel=recorded)
    assert await world.task(busy.id, running.id) == result.task
    assert world.agents.cancelled == [running.id]


async def test_the_intent_is_committed_before_the_agent_is_signalled(world: World) -> None:
    busy, running = await world.add_busy()
    seen: list[Task] = []

    async def read_task(at: Workspace, signalled: Task) -> None:
        seen.append(await world.task(at.id, signalled.id))

    world.agents.meanwhile = read_task
    result = await world.cancel(busy.id, reason="now")
    assert [each.cancel for each in seen] == [result.task.cancel if result.task else None]
    assert seen[0].cancel is not None and seen[0].cancel.reason == "now"
    assert running.cancel is None


async def test_the_first_intent_stays_and_the_agent_is_signalled_again(world: World) -> None:
    busy, running = await world.add_busy()
    first = await world.cancel(busy.id, reason="first")
    world.clock.advance(60)
    second = await world.cancel(busy.id, caller(actor_id="user_2"), reason="second")
    assert second.outcome is Outcome.ALREADY_REQUESTED
    assert second.task == first.task
    assert world.agents.cancelled == [running.id, running.id]
    assert (await world.event_types(busy.id)).count("task_cancel_requested") == 1


async def test_an_idle_workspace_has_no_active_task(world: World) -> None:
    idle = await world.add()
    result = await world.cancel(idle.id)
    assert (result.outcome, result.task) == (Outcome.NO_ACTIVE_TASK, None)
    assert world.agents.cancelled == []
    assert await world.events(idle.id) == []


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_a_finished_task_is_already_finished_in_every_workspace_status(
    world: World, status: WorkspaceStatus
) -> None:
    busy, finished = await world.add_busy()
    await world.end(busy.id, finished.id)
    before = await world.events(busy.id)
    await world.set_status(busy.id, status)
    result = await world.cancel(busy.id, task_id=finished.id)
    assert result.outcome is Outcome.ALREADY_FINISHED
    assert (
        result.task is not None
        and result.task.status is TaskStatus.COMPLETED
        and result.task.cancel is None
    )
    assert world.agents.cancelled == []
    assert await world.events(busy.id) == before


async def test_cancelling_a_finished_task_does_not_touch_the_next_one(world: World) -> None:
    busy, first = await world.add_busy()
    await world.end(busy.id, first.id)
    second = await world.run(busy)
    result = await world.cancel(busy.id, task_id=first.id)
    assert (result.outcome, result.task and result.task.id) == (Outcome.ALREADY_FINISHED, first.id)
    assert (await world.task(busy.id, second.id)).cancel is None
    assert world.agents.cancelled == []


async def test_a_cancellation_of_an_unreachable_agent_fails_and_keeps_the_intent(
    world: World,
) -> None:
    busy, running = await world.add_busy()
    world.agents.reachable = False
    with pytest.raises(Failure) as raised:
        await world.cancel(busy.id)
    failure = raised.value
    assert failure.slug == "agent_unreachable"
    assert failure.details == {
        "workspace_id": busy.id,
        "task_id": running.id,
        "intent_recorded": True,
    }
    assert (
        running.id in failure.message
        and busy.id in failure.message
        and "Do not repeat" in failure.message
    )
    assert (await world.task(busy.id, running.id)).cancel is not None
    assert (await world.event_types(busy.id)).count("task_cancel_requested") == 1
    await world.end(busy.id, running.id)
    assert (await world.task(busy.id, running.id)).status is TaskStatus.CANCELLED


async def test_the_reply_has_the_end_that_the_agent_just_committed(world: World) -> None:
    busy, _ = await world.add_busy()

    async def end(at: Workspace, signalled: Task) -> None:
        await world.end(at.id, signalled.id, result="the answer")

    world.agents.meanwhile, world.agents.known = end, False
    result = await world.cancel(busy.id)
    assert result.outcome is Outcome.ACCEPTED
    assert result.task is not None
    assert (result.task.status, result.task.result) == (TaskStatus.CANCELLED, "the answer")


async def test_a_call_without_a_database_fails_and_signals_no_agent(world: World) -> None:
    busy, _ = await world.add_busy()
    world.store.unavailable = True
    with pytest.raises(UnavailableError):
        await world.cancel(busy.id)
    assert world.agents.cancelled == []


async def test_a_force_deadline_counts_from_its_own_call_and_names_its_requester(
    world: World,
) -> None:
    busy, running = await world.add_busy()
    await world.cancel(busy.id)
    world.clock.advance(60)
    result = await world.cancel(busy.id, caller(actor_id="user_2"), force_after_seconds=2.5)
    assert result.outcome is Outcome.ALREADY_REQUESTED
    stored = await world.task(busy.id, running.id)
    assert stored.cancel is not None and result.task == stored
    assert (stored.cancel.force_at, stored.cancel.force_requested_by) == (
        world.clock() + timedelta(seconds=2.5),
        "user_2",
    )
    assert (stored.cancel.requested_by, stored.cancel.requested_at) == (
        USER,
        world.clock() - timedelta(seconds=60),
    )
    assert (await world.event_types(busy.id)).count("task_cancel_requested") == 1


STRANGER = caller("workspace:write:own", actor_id="user_2")
ELSEWHERE = caller(org_id="org_b")
NO_SCOPE = caller("workspace:read", "tasks:write")
DOWN = {
    WorkspaceStatus.PROVISIONING: "workspace_provisioning",
    WorkspaceStatus.STOPPING: "workspace_stopped",
    WorkspaceStatus.STOPPED: "workspace_stopped",
    WorkspaceStatus.FAILED: "workspace_failed",
}


async def refusal(
    world: World, workspace_id: str, by: Caller | None = None, *, task_id: str | None = None
) -> Failure:
    """Cancels a task, which must fail without a signal to an agent. Returns the failure."""
    with pytest.raises(Failure) as raised:
        await world.cancel(workspace_id, by, task_id=task_id)
    assert world.agents.cancelled == []
    return raised.value


def test_an_invalid_request_cannot_be_constructed() -> None:
    with pytest.raises(Failure) as raised:
        CancelTask(workspace_id="a b", task_id="/", reason="x" * 501, origin=Origin("req"))
    assert raised.value.slug == "validation_error"
    assert set(raised.value.details["fields"]) == {"workspace_id", "task_id", "reason"}


def test_an_empty_task_id_does_not_mean_the_task_that_runs() -> None:
    with pytest.raises(Failure, match="task_id"):
        CancelTask(workspace_id="ws_1", task_id="", origin=Origin("req"))


async def test_the_scope_is_checked_before_the_workspace_exists(world: World) -> None:
    failure = await refusal(world, "ws_unknown", NO_SCOPE, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write", "workspace:write:own"]


async def test_a_foreign_workspace_and_a_missing_one_look_the_same(world: World) -> None:
    busy, _ = await world.add_busy()
    foreign = await refusal(world, busy.id, ELSEWHERE)
    missing = await refusal(world, "ws_unknown", ELSEWHERE)
    assert foreign.message.replace(busy.id, "ws_unknown") == missing.message
    assert set(foreign.details) == set(missing.details)


async def test_the_creator_is_checked_before_the_task_exists(world: World) -> None:
    busy, _ = await world.add_busy()
    failure = await refusal(world, busy.id, STRANGER, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write"]


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_the_task_is_looked_up_before_the_status_is_checked(
    world: World, status: WorkspaceStatus
) -> None:
    down = await world.add(status)
    failure = await refusal(world, down.id, task_id="task_unknown")
    assert failure.slug == "task_not_found"
    assert (failure.details["resource_name"], failure.details["workspace_id"]) == (
        "task_unknown",
        down.id,
    )


@pytest.mark.parametrize(("down", "slug"), DOWN.items())
async def test_a_workspace_that_is_not_up_refuses_with_its_status(
    world: World, down: WorkspaceStatus, slug: str
) -> None:
    """An open task stays unchanged. The provisioning workspace of this test has no task."""
    busy, running = await world.add_busy()
    if is_provisioning := down is WorkspaceStatus.PROVISIONING:
        busy = await world.add(down)
    await world.set_status(busy.id, down)
    before = await world.events(busy.id)
    for task_id in (None,) if is_provisioning else (None, running.id):
        failure = await refusal(world, busy.id, task_id=task_id)
        assert (failure.slug, failure.details["status"], failure.details["workspace_id"]) == (
            slug,
            down,
            busy.id,
        )
        assert busy.id in failure.message
    assert (await world.task(running.workspace_id, running.id)).cancel is None
    assert await world.events(busy.id) == before


LIMIT_SECONDS = 10


async def waiting(world: World, workspace_id: str, **fields: Any) -> "asyncio.Task[CancelResult]":
    """Starts a cancellation. Returns the call once it waits for the end of the task."""
    calling = asyncio.create_task(world.cancel(workspace_id, **fields))
    async with asyncio.timeout(LIMIT_SECONDS):
        while not world.subscriptions.has_subscribers(workspace_id):
            await asyncio.sleep(0)
    return calling


async def test_the_reply_waits_for_the_end_of_the_task(world: World) -> None:
    busy, running = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    assert not calling.done()
    await world.end(busy.id, running.id)
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, True)
    assert result.task is not None
    assert result.task.status is TaskStatus.CANCELLED


async def test_a_wait_that_times_out_replies_with_the_current_task(world: World) -> None:
    busy, _ = await world.add_busy()
    result = await world.cancel(busy.id, wait_seconds=0.01)
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)
    assert result.task is not None
    assert result.task.cancel is not None


async def test_the_wait_ends_before_the_callers_deadline(world: World) -> None:
    busy, _ = await world.add_busy()
    deadline.begin(0.26)
    async with asyncio.timeout(LIMIT_SECONDS):
        assert not (await world.cancel(busy.id, wait_seconds=30)).saw_end


async def test_a_draining_server_ends_the_wait(world: World) -> None:
    busy, _ = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    world.subscriptions.drain()
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)


async def test_the_removal_of_the_workspace_ends_the_wait(world: World) -> None:
    busy, running = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    # The removal comes before the call has read the end of the task.
    await delete_workspace(
        caller(), busy.id, Origin("req_d"), world.store, world.agents, world.clock
    )
    assert await world.store.remove_workspace(busy.id)
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert result.outcome is Outcome.ACCEPTED
    assert result.task is not None and result.task.id == running.id


async def test_an_unreachable_agent_fails_the_call_at_once(world: World) -> None:
    busy, _ = await world.add_busy()
    world.agents.reachable = False
    async with asyncio.timeout(LIMIT_SECONDS):
        with pytest.raises(Failure) as raised:
            await world.cancel(busy.id, wait_seconds=30)
    assert raised.value.slug == "agent_unreachable"


@pytest.mark.parametrize("seconds", [-0.001, 86_401, float("nan")])
async def test_a_force_deadline_out_of_bounds_is_refused(world: World, seconds: float) -> None:
    with pytest.raises(Failure) as raised:
        await world.cancel("ws_1", force_after_seconds=seconds)
    assert set(raised.value.details["fields"]) == {"force_after"}


@pytest.mark.parametrize("seconds", [-0.5, MAX_WAIT_SECONDS + 0.5])
async def test_a_wait_out_of_bounds_is_refused(world: World, seconds: float) -> None:
    with pytest.raises(Failure) as raised:
        await world.cancel("ws_1", wait_seconds=seconds)
    assert raised.value.details["fields"] == {"wait": "must be 0 to 30 s"}


async def test_an_end_between_the_signal_and_the_wait_is_not_missed(world: World) -> None:
    busy, running = await world.add_busy()

    async def end(workspace: Workspace, task: Task) -> None:
        await world.end(busy.id, running.id)

    world.agents.meanwhile = end
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await world.cancel(busy.id, wait_seconds=30)
    assert result.saw_end


async def test_an_accepted_call_succeeds_though_the_database_goes_down_afterwards(
    world: World,
) -> None:
    busy, _ = await world.add_busy()

    async def go_away(workspace: Workspace, task: Task) -> None:
        world.store.unavailable = True

    world.agents.meanwhile, world.agents.known = go_away, False
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await world.cancel(busy.id, wait_seconds=0.01)
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)
    assert result.task is not None and result.task.cancel is not None
