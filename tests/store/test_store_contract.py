"""What every Store does, the one on PostgreSQL and the one in memory."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from server.core import task_lifecycle
from server.core.change import Change, Locked, unchanged
from server.core.errors import Failure
from server.core.event import EventType, Origin, cancel_requested_payload
from server.core.ids import new_task_id
from server.core.ports import Store
from server.core.task import Phase, TaskStatus, Usage
from server.core.task_lifecycle import IterationCompleted, TaskStarted
from server.core.workspace import WorkspaceStatus
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    set_status,
    task,
    with_task,
    workspace,
)


async def test_a_cancellation_is_recorded_with_its_event(store: Store) -> None:
    busy, submitted = await with_task(store)
    found = await store.record_cancellation(permission(), busy.id, None, intent())
    assert found.recorded
    assert found.task == replace(submitted, cancel=intent())
    assert found.workspace == replace(busy, last_seq=2)
    assert await store.get_task(busy.id, submitted.id) == found.task
    assert await store.get_workspace(busy.id) == found.workspace
    (event,) = await store.list_events(busy.id, 1, 10)
    assert (event.seq, event.type, event.task_id, event.origin.request_id) == (
        2,
        "task_cancel_requested",
        submitted.id,
        "req_1",
    )
    assert (event.time, event.payload) == (NOW, cancel_requested_payload(intent()))


async def test_the_task_may_be_named(store: Store) -> None:
    busy, submitted = await with_task(store)
    found = await store.record_cancellation(permission(), busy.id, submitted.id, intent())
    assert found.recorded


async def test_the_first_intent_stays(store: Store) -> None:
    busy, _ = await with_task(store)
    first = await store.record_cancellation(permission(), busy.id, None, intent("first"))
    second = await store.record_cancellation(
        permission(), busy.id, None, intent("second", request_id="req_2")
    )
    assert not second.recorded
    assert (second.workspace, second.task) == (first.workspace, first.task)
    assert len(await store.list_events(busy.id, 0, 10)) == 2


@pytest.mark.parametrize(
    ("stood", "asked", "then"),
    [(None, 9, 9), (9, 5, 5), (5, 9, 5), (5, None, 5), (None, None, None)],
)
async def test_the_earliest_deadline_wins_with_whoever_asked_for_it(
    store: Store, stood: float | None, asked: float | None, then: float | None
) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(
        permission(), busy.id, None, intent("first", force_after_seconds=stood)
    )
    found = await store.record_cancellation(
        permission(),
        busy.id,
        None,
        intent("second", force_after_seconds=asked, requested_by="user_2"),
    )
    assert not found.recorded
    whose = "user_1" if then == stood else "user_2"
    forced = intent(force_after_seconds=then, requested_by=whose)
    stands = replace(
        intent("first"), force_at=forced.force_at, force_requested_by=forced.force_requested_by
    )
    assert found.task == replace(submitted, cancel=stands)
    assert await store.get_task(busy.id, submitted.id) == found.task


async def test_another_organization_finds_nothing(store: Store) -> None:
    busy, submitted = await with_task(store)
    for task_id in (None, submitted.id):
        found = await store.record_cancellation(
            permission(org_id="org_b"), busy.id, task_id, intent()
        )
        assert (found.workspace, found.task, found.recorded) == (None, None, False)
    assert await store.get_task(busy.id, submitted.id) == submitted


async def test_an_unknown_workspace_is_none(store: Store) -> None:
    found = await store.record_cancellation(permission(), "ws_unknown", None, intent())
    assert (found.workspace, found.task, found.recorded) == (None, None, False)


@pytest.mark.parametrize(
    ("creator", "caller", "recorded"),
    [
        ("user_1", "user_1", True),
        ("user_1", "user_2", False),
        (None, "user_1", False),
        ("user_1", None, False),
        (None, None, False),
    ],
)
async def test_own_covers_the_creator_alone(
    store: Store, creator: str | None, caller: str | None, recorded: bool
) -> None:
    busy, submitted = await with_task(store, user_id=creator)
    found = await store.record_cancellation(
        permission(user_id=caller, own_only=True), busy.id, None, intent()
    )
    assert found.recorded is recorded
    assert found.workspace is not None and found.workspace.id == busy.id
    stored = await store.get_task(busy.id, submitted.id)
    assert stored is not None and (stored.cancel is not None) is recorded


async def test_a_task_of_another_workspace_is_none(store: Store) -> None:
    busy, submitted = await with_task(store)
    _, other = await with_task(store)
    for task_id in (other.id, new_task_id()):
        found = await store.record_cancellation(permission(), busy.id, task_id, intent())
        assert (found.workspace, found.task, found.recorded) == (busy, None, False)
    assert await store.get_task(busy.id, submitted.id) == submitted


async def test_an_idle_workspace_has_no_task(store: Store) -> None:
    idle = workspace()
    await store.create_workspace(idle)
    found = await store.record_cancellation(permission(), idle.id, None, intent())
    assert (found.workspace, found.task, found.recorded) == (idle, None, False)


async def test_a_finished_task_stays_as_it_ended(store: Store) -> None:
    busy, submitted = await with_task(store)
    await complete(store, busy, submitted.id)
    found = await store.record_cancellation(permission(), busy.id, submitted.id, intent())
    assert not found.recorded
    assert found.task is not None and (found.task.status, found.task.cancel) == (
        TaskStatus.COMPLETED,
        None,
    )
    current = await store.record_cancellation(permission(), busy.id, None, intent())
    assert (current.task, current.recorded) == (None, False)


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_only_a_workspace_that_is_up_records(store: Store, status: WorkspaceStatus) -> None:
    busy, submitted = await with_task(store)
    await set_status(store, busy.id, status)
    found = await store.record_cancellation(permission(), busy.id, None, intent())
    assert found.recorded is (status in (WorkspaceStatus.IDLE, WorkspaceStatus.BUSY))
    assert found.workspace is not None and found.workspace.status is status
    assert found.task is not None and found.task.id == submitted.id


async def test_a_refused_call_moves_no_deadline(store: Store) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent(force_after_seconds=9))
    await set_status(store, busy.id, WorkspaceStatus.STOPPING)
    found = await store.record_cancellation(
        permission(), busy.id, None, intent(force_after_seconds=1)
    )
    assert found.task == replace(submitted, cancel=intent(force_after_seconds=9))


async def test_of_many_at_once_one_records(store: Store) -> None:
    busy, _ = await with_task(store)
    calls = [
        store.record_cancellation(permission(), busy.id, None, intent(request_id=f"req_{number}"))
        for number in range(50)
    ]
    found = await asyncio.gather(*calls)
    assert [each.recorded for each in found].count(True) == 1
    assert (
        len({each.task.cancel.request_id for each in found if each.task and each.task.cancel}) == 1
    )
    assert len(await store.list_events(busy.id, 0, 100)) == 2


async def test_a_cancellation_does_not_leak_into_the_next_task(store: Store) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    await complete(store, busy, submitted.id)
    ended = await store.get_task(busy.id, submitted.id)
    assert ended is not None and (ended.status, ended.result) == (TaskStatus.CANCELLED, "done")
    following = task(busy.id)
    change = await store.transition(
        busy.id, lambda locked: task_lifecycle.submit(locked, following, "user_1")
    )
    assert change is not None and change.task == following
    assert await store.get_task(busy.id, following.id) == following


async def test_a_transition_commits_workspace_task_and_events(store: Store) -> None:
    busy, submitted = await with_task(store)
    payload = {"number": 1, "model_call": {"input_tokens": 3, "output_tokens": 4, "content": "ü"}}
    change = await store.transition(
        busy.id,
        lambda locked: task_lifecycle.commit(
            locked, 1, submitted.id, [TaskStarted(), IterationCompleted(1, payload)], NOW
        ),
    )
    assert change is not None and change.task is not None
    assert (change.workspace.last_seq, change.task.iterations) == (3, 1)
    assert change.task.usage == Usage(input_tokens=3, output_tokens=4, model_calls=1)
    assert await store.get_workspace(busy.id) == change.workspace
    assert await store.get_task(busy.id, submitted.id) == change.task
    events = await store.list_events(busy.id, 0, 10)
    assert [event.seq for event in events] == [1, 2, 3]
    assert [event.type for event in events] == [
        EventType.TASK_SUBMITTED,
        EventType.TASK_STARTED,
        EventType.ITERATION_COMPLETED,
    ]
    assert events[2].payload == payload


async def test_every_field_comes_back(store: Store) -> None:
    busy, _ = await with_task(store)

    def fill(locked: Locked) -> Change:
        assert locked.task is not None
        filled = replace(
            locked.workspace,
            status_reason="why",
            agent_address="127.0.0.1:1",
            lease_expires_at=NOW + timedelta(microseconds=1),
            run_id="run_1",
            epoch=2**40,
            updated_at=NOW + timedelta(days=1),
        )
        running = replace(
            locked.task,
            status=TaskStatus.RUNNING,
            phase=Phase.TOOL_CALL,
            started_at=NOW,
            cancel=intent(force_after_seconds=2.5),
            reason="r",
            result="s",
            forced=True,
            usage=Usage(input_tokens=2**40, output_tokens=2, model_calls=3, tool_calls=4),
        )
        return Change(filled, running)

    change = await store.transition(busy.id, fill)
    assert change is not None and change.task is not None
    assert await store.get_workspace(busy.id) == change.workspace
    assert await store.get_task(busy.id, change.task.id) == change.task
    seen: list[Locked] = []

    def look(locked: Locked) -> Change:
        seen.append(locked)
        return unchanged(locked)

    await store.transition(busy.id, look)
    assert seen == [Locked(change.workspace, change.task)]


async def test_a_failure_rolls_back_and_is_raised(store: Store) -> None:
    busy, submitted = await with_task(store)
    second = task(busy.id)
    with pytest.raises(Failure) as raised:
        await store.transition(
            busy.id, lambda locked: task_lifecycle.submit(locked, second, "user_1")
        )
    assert raised.value.slug == "workspace_busy"
    assert await store.get_task(busy.id, second.id) is None
    assert await store.get_workspace(busy.id) == busy
    await complete(store, busy, submitted.id)


async def test_a_transition_of_no_workspace_is_none(store: Store) -> None:
    assert await store.transition("ws_unknown", unchanged) is None


async def test_seq_has_no_gaps_under_concurrency(store: Store) -> None:
    busy, submitted = await with_task(store)

    def iterate(locked: Locked) -> Change:
        assert locked.task is not None
        payload = {"number": locked.task.iterations + 1, "model_call": {}}
        return task_lifecycle.commit(
            locked,
            1,
            submitted.id,
            [TaskStarted(), IterationCompleted(locked.task.iterations + 1, payload)],
            NOW,
        )

    changes = await asyncio.gather(*(store.transition(busy.id, iterate) for _ in range(30)))
    events = await store.list_events(busy.id, 0, 100)
    assert [event.seq for event in events] == list(range(1, 33))
    assert max(change.workspace.last_seq for change in changes if change) == 32
    assert [event.payload["number"] for event in events[2:]] == list(range(1, 31))


async def test_lists_are_newest_first_and_paged(store: Store) -> None:
    mine = [workspace() for _ in range(3)]
    others = [workspace(user_id="user_2"), workspace(user_id=None), workspace(org_id="org_b")]
    for each in mine + others:
        await store.create_workspace(each)
    newest_first = sorted((each.id for each in mine + others[:2]), reverse=True)
    assert [each.id for each in await store.list_workspaces(permission(), None, 10)] == newest_first
    assert [
        each.id for each in await store.list_workspaces(permission(), newest_first[1], 2)
    ] == newest_first[2:4]
    own = await store.list_workspaces(permission(own_only=True), None, 10)
    assert [each.id for each in own] == sorted((each.id for each in mine), reverse=True)
    assert not await store.list_workspaces(permission(user_id=None, own_only=True), None, 10)


async def test_tasks_and_events_are_listed_per_workspace(store: Store) -> None:
    busy, first = await with_task(store)
    await with_task(store)
    await complete(store, busy, first.id)
    second = task(busy.id)
    await store.transition(busy.id, lambda locked: task_lifecycle.submit(locked, second, "user_1"))
    newest_first = sorted((first.id, second.id), reverse=True)
    assert [each.id for each in await store.list_tasks(busy.id, None, 10)] == newest_first
    assert [
        each.id for each in await store.list_tasks(busy.id, newest_first[0], 10)
    ] == newest_first[1:]
    assert len(await store.list_tasks(busy.id, None, 1)) == 1
    assert [event.seq for event in await store.list_events(busy.id, 1, 1)] == [2]
    assert await store.list_events(busy.id, 3, 10) == []


async def test_wanted_pods_are_those_that_have_not_ended(store: Store) -> None:
    for status in WorkspaceStatus:
        await store.create_workspace(workspace(status))
    wanted = {each.status for each in await store.list_wanted_pods()}
    assert wanted == set(WorkspaceStatus) - {WorkspaceStatus.STOPPED, WorkspaceStatus.FAILED}


async def test_workspaces_are_counted_by_status(store: Store) -> None:
    assert await store.count_workspaces() == {}
    for status in (WorkspaceStatus.FAILED, WorkspaceStatus.IDLE, WorkspaceStatus.FAILED):
        await store.create_workspace(workspace(status))
    assert await store.count_workspaces() == {WorkspaceStatus.FAILED: 2, WorkspaceStatus.IDLE: 1}


async def test_an_event_keeps_the_trace_in_whose_course_it_happened(store: Store) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent(), "a" * 32)
    await store.transition(
        busy.id,
        lambda locked: task_lifecycle.commit(
            locked, busy.epoch, submitted.id, [TaskStarted()], NOW
        ).caused_by(Origin(trace_id="c" * 32)),
    )
    events = await store.list_events(busy.id, 0, 10)
    assert [event.origin.trace_id for event in events] == ["", "a" * 32, "c" * 32]
    assert not any("trace_id" in event.payload for event in events)
