"""The store on PostgreSQL and the store in memory agree after random sequences of steps."""

import asyncio
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.ports import Store
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    Phase,
    Task,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.memory.memory_store import MemoryStore
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from tests.support.store.examples import NOW, intent, permission, task, workspace

Decide = Callable[[Locked], Change]
# Takes a task that the step may submit. Returns the function that decides the transition.
Step = Callable[[Task], Decide]

_END_STATUSES = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


def _iterate(locked: Locked) -> Change:
    number = locked.task.iterations + 1 if locked.task else 1
    payload = {
        "number": number,
        "model_call": {"input_tokens": number},
        "tool_call": {"result": {"output": "ü"}},
    }
    return _commit(locked, IterationCompleted(number, payload))


def _commit(locked: Locked, event: AgentEvent) -> Change:
    task_id = locked.task.id if locked.task else ""
    return task_lifecycle.commit(locked, locked.workspace.epoch, task_id, [event], NOW)


def _end(status: TaskStatus) -> Step:
    return lambda _: lambda locked: _commit(locked, TaskEnded(status=status, result="r"))


_STEPS: dict[str, Step] = {
    "register": lambda _: (
        lambda locked: workspace_lifecycle.register(
            locked, locked.workspace.epoch, "127.0.0.1:1", 9, NOW
        )
    ),
    "submit": lambda new: lambda locked: task_lifecycle.submit(locked, new, "user_1"),
    "deliver": lambda _: (
        lambda locked: task_lifecycle.deliver(locked, locked.task.id if locked.task else "")
    ),
    "fail_delivery": lambda _: (
        lambda locked: task_lifecycle.fail_delivery(
            locked, locked.task.id if locked.task else "", "unreachable", NOW
        )
    ),
    "start": lambda _: lambda locked: _commit(locked, TaskStarted()),
    "iterate": lambda _: _iterate,
    "heartbeat": lambda _: (
        lambda locked: workspace_lifecycle.heartbeat(
            locked,
            locked.workspace.epoch,
            locked.task.id if locked.task else "",
            Phase.MODEL_CALL,
            20,
            NOW,
        )
    ),
    "stop": lambda _: (
        lambda locked: workspace_lifecycle.request_stop(locked, intent("workspace stopped"))
    ),
    "stopped": lambda _: (
        lambda locked: workspace_lifecycle.finish_stop(
            locked, locked.workspace.epoch, NOW, work_stopped=True
        )
    ),
    "lose": lambda _: (
        lambda locked: workspace_lifecycle.lose_agent(
            locked, locked.workspace.epoch, "gone", NOW, work_stopped=False
        )
    ),
    "suspend": lambda _: lambda locked: workspace_lifecycle.suspend(locked, NOW, NOW),
    "suspended": lambda _: (
        lambda locked: workspace_lifecycle.finish_suspension(locked, locked.workspace.epoch)
    ),
    "end_unstarted": lambda _: lambda locked: task_lifecycle.end_unstarted(locked, NOW),
    "resume": lambda _: lambda locked: workspace_lifecycle.resume(locked, NOW),
    "place": lambda _: (
        lambda locked: workspace_lifecycle.place(
            locked, locked.workspace.epoch, "run_1", NOW, work_stopped=True
        )
    ),
    "place_elsewhere": lambda _: (
        lambda locked: workspace_lifecycle.place(
            locked, locked.workspace.epoch, "run_2", NOW, work_stopped=True
        )
    ),
    **{f"end_{status}": _end(status) for status in _END_STATUSES},
}
_CANCEL = st.tuples(st.just("cancel"), st.none() | st.integers(1, 9), st.booleans())
_TRANSITION = st.tuples(st.sampled_from(sorted(_STEPS)), st.none(), st.just(False))
# These steps are drawn more often, because most other steps need a running task.
_PROGRESS = st.tuples(
    st.sampled_from(["register", "submit", "start", "iterate"]), st.none(), st.just(False)
)


async def _apply(
    store: Store, new: Workspace, steps: list[tuple[str, int | None, bool]], tasks: list[Task]
) -> list[object]:
    """Applies the steps. Returns all results, and the workspace, tasks and events at the end."""
    results: list[object] = []
    await store.create_workspace(new)
    for (name, force_after_seconds, named), offered in zip(steps, tasks, strict=True):
        if name == "cancel":
            requested = intent(name, force_after_seconds=force_after_seconds)
            task_id = tasks[0].id if named else None
            results.append(
                await store.record_cancellation(permission(), new.id, task_id, requested)
            )
            continue
        try:
            results.append(await store.transition(new.id, _STEPS[name](offered)))
        except Failure as failure:
            results.append(failure.slug)
        except BreachError as breach:
            results.append(str(breach))
    results += [
        await store.get_workspace(new.id),
        await store.list_tasks(new.id, None, 100),
        await store.list_events(new.id, 0, 1000),
    ]
    return results


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_PROGRESS | _TRANSITION | _CANCEL, min_size=1, max_size=25))
def test_both_stores_agree(database_url: str, steps: list[tuple[str, int | None, bool]]) -> None:
    async def compare() -> None:
        new = workspace(WorkspaceStatus.PROVISIONING)
        tasks = [task(new.id) for _ in steps]
        async with open_pool(database_url, min_size=1) as pool:
            results = await _apply(PostgresStore(pool, clock=lambda: NOW), new, steps, tasks)
        assert results == await _apply(MemoryStore(lambda: NOW), new, steps, tasks)
        events = results[-1]
        assert isinstance(events, list)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        ends = [event.task_id for event in events if event.type == "task_completed"]
        assert len(ends) == len(set(ends))

    asyncio.run(compare())
