"""Whatever happens in whatever order: the store on PostgreSQL ends up with what the one in memory
ends up with.
"""

import asyncio
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.core import lifecycle
from server.core.errors import Failure
from server.core.lifecycle import Change, Ending, Iterated, Session, Started
from server.core.ports import Store
from server.core.task import Phase, Task, TaskStatus
from server.core.workspace import Workspace, WorkspaceStatus
from server.store.pool import open_pool
from server.store.postgres_store import PostgresStore
from tests.support.fakes import FakeStore
from tests.support.store.examples import NOW, intent, permission, task, workspace

Decide = Callable[[Session], Change]
# A step gets the task it may submit, and says what it does to a session.
Step = Callable[[Task], Decide]

_END_STATUSES = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


def _iterate(session: Session) -> Change:
    number = session.task.iterations + 1 if session.task else 1
    payload = {
        "number": number,
        "model_call": {"input_tokens": number},
        "tool_call": {"result": {"output": "ü"}},
    }
    return _commit(session, Iterated(number, payload))


def _commit(session: Session, happened: lifecycle.AgentEvent) -> Change:
    task_id = session.task.id if session.task else ""
    return lifecycle.commit(session, session.workspace.epoch, task_id, [happened], NOW)


def _end(status: TaskStatus) -> Step:
    return lambda _: lambda session: _commit(session, Ending(status=status, result="r"))


_STEPS: dict[str, Step] = {
    "register": lambda _: (
        lambda session: lifecycle.register(session, session.workspace.epoch, "127.0.0.1:1", 9, NOW)
    ),
    "submit": lambda new: lambda session: lifecycle.submit(session, new, "user_1", "req_1"),
    "deliver": lambda _: (
        lambda session: lifecycle.deliver(session, session.task.id if session.task else "")
    ),
    "fail_delivery": lambda _: (
        lambda session: lifecycle.fail_delivery(
            session, session.task.id if session.task else "", "unreachable", NOW
        )
    ),
    "start": lambda _: lambda session: _commit(session, Started()),
    "iterate": lambda _: _iterate,
    "heartbeat": lambda _: (
        lambda session: lifecycle.heartbeat(
            session,
            session.workspace.epoch,
            session.task.id if session.task else "",
            Phase.MODEL_CALL,
            20,
            NOW,
        )
    ),
    "stop": lambda _: lambda session: lifecycle.request_stop(session, intent("workspace stopped")),
    "stopped": lambda _: (
        lambda session: lifecycle.finish_stop(
            session, session.workspace.epoch, NOW, work_stopped=True
        )
    ),
    "lose": lambda _: (
        lambda session: lifecycle.lose_agent(
            session, session.workspace.epoch, "gone", NOW, work_stopped=False
        )
    ),
    "resume": lambda _: lambda session: lifecycle.resume(session, NOW),
    "place": lambda _: (
        lambda session: lifecycle.place(
            session, session.workspace.epoch, "host_1", NOW, work_stopped=True
        )
    ),
    "place_elsewhere": lambda _: (
        lambda session: lifecycle.place(
            session, session.workspace.epoch, "host_2", NOW, work_stopped=True
        )
    ),
    **{f"end_{status}": _end(status) for status in _END_STATUSES},
}
_CANCEL = st.tuples(st.just("cancel"), st.none() | st.integers(1, 9), st.booleans())
_TRANSITION = st.tuples(st.sampled_from(sorted(_STEPS)), st.none(), st.just(False))
# Mostly what makes something happen; an odd step now and then.
_LIVELY = st.tuples(
    st.sampled_from(["register", "submit", "start", "iterate"]), st.none(), st.just(False)
)


async def _apply(
    store: Store, new: Workspace, steps: list[tuple[str, int | None, bool]], tasks: list[Task]
) -> list[object]:
    """Takes the steps; returns all that could be seen on the way and at the end."""
    seen: list[object] = []
    await store.create_workspace(new)
    for (name, force_after_seconds, named), offered in zip(steps, tasks, strict=True):
        if name == "cancel":
            asked = intent(name, force_after_seconds=force_after_seconds)
            task_id = tasks[0].id if named else None
            seen.append(await store.record_cancellation(permission(), new.id, task_id, asked))
            continue
        try:
            seen.append(await store.transition(new.id, _STEPS[name](offered)))
        except Failure as failure:
            seen.append(failure.code)
    seen += [
        await store.get_workspace(new.id),
        await store.list_tasks(new.id, None, 100),
        await store.list_events(new.id, 0, 1000),
    ]
    return seen


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_LIVELY | _TRANSITION | _CANCEL, min_size=1, max_size=25))
def test_both_stores_agree(database_url: str, steps: list[tuple[str, int | None, bool]]) -> None:
    async def compare() -> None:
        new = workspace(WorkspaceStatus.PROVISIONING)
        tasks = [task(new.id) for _ in steps]
        async with open_pool(database_url, min_size=1) as pool:
            real = await _apply(PostgresStore(pool), new, steps, tasks)
        assert real == await _apply(FakeStore(), new, steps, tasks)
        events = real[-1]
        assert isinstance(events, list)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        ends = [event.task_id for event in events if event.type == "task_completed"]
        assert len(ends) == len(set(ends))

    asyncio.run(compare())
