"""The outcomes of a cancellation that passed its checks."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core.cancel_task import Outcome
from evershell.core.errors import Failure, UnavailableError
from evershell.core.task import CancelIntent, Task, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
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
