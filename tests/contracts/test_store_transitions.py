"""The contract of Store: transitions."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked, unchanged
from evershell.core.event import Origin
from evershell.core.ports import Store
from evershell.core.task import IterationCompleted, Phase, TaskStarted, TaskStatus, Usage
from evershell.core.workspace import WorkspaceStatus
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    set_status,
    with_task,
    workspace,
)
from tests.support.store.published import Published


async def test_every_field_is_stored(store: Store) -> None:
    busy, _ = await with_task(store)

    def fill(locked: Locked) -> Change:
        assert locked.task is not None
        filled = replace(
            locked.workspace,
            status_reason="why",
            agent_address="127.0.0.1:1",
            lease_expires_at=NOW + timedelta(microseconds=1),
            run_id="run_1",
            agent_breach="which",
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
            usage=Usage(
                input_tokens=2**40,
                output_tokens=2,
                model_calls=3,
                tool_calls=4,
                cost_nanos=2**62,
            ),
            committed_bytes=2**40,
        )
        return Change(filled, running)

    change = await store.transition(busy.id, fill)
    assert change is not None and change.task is not None
    assert await store.get_workspace(busy.id) == change.workspace
    assert await store.get_task(busy.id, change.task.id) == change.task
    read: list[Locked] = []

    def record(locked: Locked) -> Change:
        read.append(locked)
        return unchanged(locked)

    await store.transition(busy.id, record)
    assert read == [Locked(change.workspace, change.task)]


async def test_a_transition_of_an_unknown_workspace_returns_none(store: Store) -> None:
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


async def test_an_event_has_the_trace_id_of_its_cause(store: Store) -> None:
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


async def test_a_change_of_events_or_status_is_published(
    store: Store, published: Published
) -> None:
    """A heartbeat is not published, because no call waits for it."""
    busy, submitted = await with_task(store)
    assert published.ids == [busy.id] * 2
    await store.transition(busy.id, unchanged)
    await store.transition(
        busy.id,
        lambda locked: replace(
            unchanged(locked), workspace=replace(locked.workspace, lease_expires_at=NOW)
        ),
    )
    assert published.ids == [busy.id] * 2
    await set_status(store, busy.id, WorkspaceStatus.STOPPING)
    await complete(store, busy, submitted.id)
    assert published.ids == [busy.id] * 4


async def test_the_controller_has_to_act_on_changes_that_await_it(
    store: Store, published: Published
) -> None:
    """The controller is notified of pods to start or end. Its next scan finds all other changes."""
    created = workspace(WorkspaceStatus.PROVISIONING)
    await store.create_workspace(created)
    assert published.to_reconcile == [created.id]
    published.clear()
    busy, running = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    await complete(store, busy, running.id)
    assert published.ids != published.to_reconcile == []
    for status in WorkspaceStatus:
        published.clear()
        await set_status(store, busy.id, status)
        awaited = status in (
            WorkspaceStatus.PROVISIONING,
            WorkspaceStatus.STOPPING,
            WorkspaceStatus.DELETING,
        )
        assert (status, published.to_reconcile) == (status, [busy.id] if awaited else [])


async def test_the_end_of_the_task_of_a_stopping_workspace_awaits_the_controller(
    store: Store, published: Published
) -> None:
    busy, running = await with_task(store)
    await set_status(store, busy.id, WorkspaceStatus.STOPPING)
    published.clear()
    await complete(store, busy, running.id)
    assert published.to_reconcile == [busy.id]
