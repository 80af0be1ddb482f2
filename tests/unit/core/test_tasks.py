"""How tasks are submitted and read."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from evershell.core import tasks
from evershell.core.caller import Caller
from evershell.core.change import Change
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.task import (
    CurrentIteration,
    Phase,
    RunningCall,
    Task,
    TaskStarted,
    TaskStatus,
)
from evershell.core.tasks import SubmitTask
from evershell.core.validation import MAX_PAGE_CHARACTERS, Page
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.world import World, caller, intent


async def submit(world: World, workspace_id: str, by: Caller | None = None, **fields: Any) -> Task:
    request = SubmitTask(
        workspace_id=workspace_id, description="ls", origin=Origin("req_s"), **fields
    )
    return await tasks.submit_task(
        by or caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )


async def refusal(world: World, workspace_id: str, by: Caller | None = None) -> Failure:
    with pytest.raises(Failure) as raised:
        await submit(world, workspace_id, by)
    return raised.value


async def test_a_task_is_recorded_before_it_is_delivered(world: World) -> None:
    idle = await world.add()
    recorded: list[Task] = []

    async def read_task(at: Workspace, given: Task) -> None:
        recorded.append(await world.task(at.id, given.id))

    world.agents.meanwhile = read_task
    submitted = await submit(world, idle.id, metadata={"k": "v"})
    assert submitted.id.startswith("task_")
    assert (submitted.status, submitted.metadata, submitted.max_iterations) == (
        TaskStatus.DELIVERED,
        {"k": "v"},
        100,
    )
    assert recorded == [replace(submitted, status=TaskStatus.SUBMITTED)]
    assert await world.task(idle.id, submitted.id) == submitted
    assert (await world.workspace(idle.id)).current_task_id == submitted.id
    (event,) = await world.events(idle.id)
    assert (event.type, event.origin.request_id) == ("task_submitted", "req_s")


@pytest.mark.parametrize("is_acknowledged", [True, False])
async def test_a_task_that_started_before_its_acknowledgement_stays_running(
    world: World, is_acknowledged: bool
) -> None:
    idle = await world.add()

    async def begin(at: Workspace, given: Task) -> None:
        await world.commit(at.id, given.id, TaskStarted())

    world.agents.meanwhile, world.agents.reachable = begin, is_acknowledged
    submitted = await submit(world, idle.id)
    assert submitted.status is TaskStatus.RUNNING
    assert submitted == await world.task(idle.id, submitted.id)


async def test_a_task_that_cannot_be_delivered_ends(world: World) -> None:
    idle = await world.add()
    world.agents.reachable = False
    failure = await refusal(world, idle.id)
    assert (failure.slug, failure.details["intent_recorded"]) == ("agent_unreachable", False)
    ended = await world.task(idle.id, failure.details["task_id"])
    assert ended.status is TaskStatus.DELIVERY_FAILED
    assert (await world.workspace(idle.id)).status is WorkspaceStatus.IDLE


async def test_a_task_cancelled_before_its_failed_delivery_ends_cancelled(world: World) -> None:
    idle = await world.add()

    async def cancel(at: Workspace, given: Task) -> None:
        world.agents.meanwhile = lambda *_: do_nothing()
        with pytest.raises(Failure):
            await world.cancel(at.id)

    async def do_nothing() -> None:
        pass

    world.agents.meanwhile, world.agents.reachable = cancel, False
    failure = await refusal(world, idle.id)
    assert (await world.task(idle.id, failure.details["task_id"])).status is TaskStatus.CANCELLED
    assert (await world.event_types(idle.id)).count("task_completed") == 1


async def test_submitting_a_task_checks_in_order(world: World) -> None:
    failed = await world.add(WorkspaceStatus.FAILED)
    assert (
        await refusal(world, "ws_unknown", caller("workspace:write"))
    ).slug == "permission_denied"
    assert (await refusal(world, "ws_unknown")).slug == "workspace_not_found"
    elsewhere = caller("tasks:write:own", org_id="org_b", actor_id="user_2")
    assert (await refusal(world, failed.id, elsewhere)).slug == "workspace_not_found"
    assert (
        await refusal(world, failed.id, caller("tasks:write:own", actor_id="user_2"))
    ).slug == "permission_denied"
    assert (await refusal(world, failed.id, caller("tasks:write:own"))).slug == "workspace_failed"


async def test_reading_a_task_checks_in_order(world: World) -> None:
    busy, running = await world.add_busy()
    _, foreign = await world.add_busy()
    assert (
        await tasks.get_task(caller("workspace:read:own"), busy.id, running.id, world.store)
        == running
    )
    for by, workspace_id, task_id, slug in (
        (caller("tasks:write"), "?", "?", "validation_error"),
        (caller("tasks:write"), "ws_unknown", "task_unknown", "permission_denied"),
        (caller(org_id="org_b"), busy.id, "task_unknown", "workspace_not_found"),
        (
            caller("workspace:read:own", actor_id="user_2"),
            busy.id,
            "task_unknown",
            "permission_denied",
        ),
        (caller(), busy.id, foreign.id, "task_not_found"),
    ):
        with pytest.raises(Failure) as raised:
            await tasks.get_task(by, workspace_id, task_id, world.store)
        assert raised.value.slug == slug


async def test_a_page_ends_before_any_long_field_makes_it_too_large(
    world: World,
) -> None:
    long = "x" * (MAX_PAGE_CHARACTERS // 2 + 1)
    for fields in (
        {"description": long},
        {"result": long},
        {"reason": long},
        {"metadata": {"key": long}},
        {"metadata": {long: ""}},
        {"cancel": intent(reason=long)},
    ):
        idle = await world.add()
        for _ in range(3):
            running = await world.run(idle)
            await world.end(idle.id, running.id)
        stored = [
            replace(task, **fields) for task in await world.store.list_tasks(idle.id, None, 3)
        ]
        world.store.tasks.update({task.id: task for task in stored})
        page, token = await tasks.list_tasks(caller(), idle.id, Page.of(0, ""), world.store)
        assert (len(page), Page.of(0, token).before_id) == (1, page[-1].id)


@pytest.mark.parametrize("is_acknowledged", [True, False])
async def test_the_reply_has_an_end_that_precedes_the_acknowledgement(
    world: World, is_acknowledged: bool
) -> None:
    idle = await world.add()

    async def run(at: Workspace, given: Task) -> None:
        await world.commit(at.id, given.id, TaskStarted())
        await world.end(at.id, given.id)

    world.agents.meanwhile, world.agents.reachable = run, is_acknowledged
    submitted = await submit(world, idle.id)
    assert (submitted.status, submitted.result) == (TaskStatus.COMPLETED, "done")


RUNNING_CALL = RunningCall(phase=Phase.TOOL_CALL, name="shell", duration_ms=5)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (
            CurrentIteration(number=3, calls=[RUNNING_CALL]),
            (Phase.TOOL_CALL, CurrentIteration(number=3, calls=[RUNNING_CALL])),
        ),
        (CurrentIteration(number=3), (Phase.NONE, CurrentIteration(number=3))),
        # This agent does not report its calls, but has reported its phase with a heartbeat.
        (None, (Phase.MODEL_CALL, CurrentIteration(number=1))),
    ],
)
async def test_the_current_iteration_is_what_the_agent_reports(
    world: World, reported: CurrentIteration | None, expected: tuple[Phase, CurrentIteration]
) -> None:
    busy, running = await world.add_busy()
    await world.change(
        busy.id,
        lambda locked: Change(
            locked.workspace, replace(require(locked.task), phase=Phase.MODEL_CALL)
        ),
    )
    world.agents.iteration = reported
    assert await current_iteration(world, running) == expected


async def test_no_agent_is_asked_about_a_task_that_does_not_run(world: World) -> None:
    world.agents.reachable = False
    busy, running = await world.add_busy()
    await world.end(busy.id, running.id)
    assert await current_iteration(world, running) == (Phase.NONE, CurrentIteration())


async def test_the_current_iteration_needs_the_agent(world: World) -> None:
    busy, running = await world.add_busy()
    world.agents.reachable = False
    for is_cancelled in (False, True):
        with pytest.raises(Failure) as raised:
            await current_iteration(world, running)
        assert raised.value.slug == "agent_unreachable"
        assert raised.value.details["intent_recorded"] is is_cancelled
        with suppress(Failure):
            await world.cancel(busy.id)


async def current_iteration(world: World, task: Task) -> tuple[Phase, CurrentIteration]:
    by = caller("workspace:read")
    read = await tasks.read_task(by, task.workspace_id, task.id, world.store)
    return await tasks.get_current_iteration(*read, world.agents)


def require(task: Task | None) -> Task:
    assert task is not None
    return task
