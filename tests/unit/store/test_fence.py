"""The fence after a restore: what it changes and refuses, and programs that run meanwhile.

tests/deploy/long/operating/test_restore.py tests the fence of a whole stack.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from evershell.commands.fence import fence as command
from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.change import Change, Locked
from evershell.core.errors import OperatorError
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import Phase, TaskStarted
from evershell.core.workspace import WorkspaceStatus
from evershell.store.connections import CALLS_NAME, COMMAND_NAME, WORKER_NAME, conninfo
from evershell.store.fence import fence
from evershell.store.leadership import Leadership
from evershell.store.pool import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import (
    NOW,
    USER,
    intent,
    permission,
    set_status,
    task,
    with_task,
    workspace,
)
from tests.support.store.locks import held
from tests.support.waiting import eventually, eventually_async

RUN_ID = "run_1"
LIMIT_SECONDS = 10
_ADD = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, epoch, last_seq, run_id
    ) VALUES (%s, 'org_1', '', 'idle', '', now(), now(), %s, 0, 'run')
"""
_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = %s
"""


def epochs(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT id, epoch FROM workspaces").fetchall())


def add(url: str, **workspaces: int) -> None:
    """Adds idle workspaces, each with its epoch."""
    with psycopg.connect(url) as connection:
        for workspace_id, epoch in workspaces.items():
            connection.execute(_ADD, (workspace_id, epoch))


def test_epochs_are_beyond_those_of_a_history_that_was_lost(database_url: str) -> None:
    add(database_url, ws_1=3, ws_2=8)
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT extract(epoch FROM now())::bigint").fetchone()
    assert row is not None
    assert fence(database_url) == 2
    assert all(row[0] <= epoch <= row[0] + 60 for epoch in epochs(database_url).values())


def test_each_fence_moves_each_epoch(database_url: str) -> None:
    """Each epoch changes even at two fences within a second, or after the clock was set back."""
    far = 2**40
    add(database_url, ws_1=1, ws_2=far)
    seen = [epochs(database_url)]
    for _ in range(3):
        fence(database_url)
        seen.append(epochs(database_url))
    for name in ("ws_1", "ws_2"):
        assert len({each[name] for each in seen}) == len(seen)
    assert seen[-1]["ws_2"] == far + 3


async def test_a_database_in_use_is_refused(database_url: str, pool: Pool) -> None:
    add(database_url, ws_1=3)
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")
        with pytest.raises(OperatorError):
            fence(database_url)
    assert epochs(database_url) == {"ws_1": 3}


def test_programs_whose_url_names_them_are_found_too(database_url: str) -> None:
    add(database_url, ws_1=3)
    url = make_conninfo(database_url, application_name="platform")
    with psycopg.connect(conninfo(url)), pytest.raises(OperatorError):
        fence(url)
    assert epochs(database_url) == {"ws_1": 3}


@pytest.mark.parametrize("name", [WORKER_NAME, CALLS_NAME])
def test_the_sessions_of_a_worker_are_found_too(database_url: str, name: str) -> None:
    add(database_url, ws_1=3)
    url = make_conninfo(database_url, application_name=name)
    with psycopg.connect(conninfo(url)), pytest.raises(OperatorError):
        fence(database_url)
    assert epochs(database_url) == {"ws_1": 3}


@pytest.mark.parametrize("name", ["evershell", "platform"])
def test_the_sessions_of_commands_that_are_ending_do_not_count(
    database_url: str, name: str
) -> None:
    """The sessions of a command end a little later than the command."""
    url = make_conninfo(database_url, application_name=name)
    add(database_url, ws_1=3)
    for _ in range(20):
        assert fence(url) == 1


def test_the_command_says_what_it_did(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add(database_url, ws_1=3)
    monkeypatch.setenv("DATABASE_URL", database_url)
    done = CliRunner().invoke(command)
    assert (done.exit_code, done.output) == (0, "All agents are fenced. Number of workspaces: 1.\n")
    with psycopg.connect(conninfo(database_url)):
        refused = CliRunner().invoke(command)
    assert refused.exit_code == 1
    assert "Stop all workers and controllers first." in refused.output


def test_a_database_without_the_schema_is_refused(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    done = CliRunner().invoke(command)
    assert done.exit_code == 1
    assert "The database does not have the schema of this service." in done.output


def test_a_database_that_accepts_no_writes_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(database_url, ws_1=3)
    read_only = make_conninfo(database_url, options="-c default_transaction_read_only=on")
    monkeypatch.setenv("DATABASE_URL", read_only)
    assert "is read-only: it is a standby, or has" in CliRunner().invoke(command).output
    assert epochs(database_url) == {"ws_1": 3}


@pytest.fixture
def other_url(database_url: str) -> str:
    """The URL of programs whose sessions a fence does not recognize by their name."""
    return make_conninfo(database_url, application_name="other")


@pytest.fixture
async def store(other_url: str) -> AsyncIterator[PostgresStore]:
    async with open_pool(other_url) as pool:
        yield PostgresStore(pool, machine_clock)


async def epoch_of(store: PostgresStore, workspace_id: str) -> int:
    found = await store.get_workspace(workspace_id)
    assert found is not None
    return found.epoch


def placed(locked: Locked) -> Change:
    return workspace_lifecycle.place(locked, 1, RUN_ID, NOW, work_stopped=True)


def registered(locked: Locked) -> Change:
    return workspace_lifecycle.register(locked, 1, "127.0.0.1:9", 60, NOW)


def submitted(locked: Locked) -> Change:
    return task_lifecycle.submit(locked, task(locked.workspace.id), USER)


def started(locked: Locked) -> Change:
    assert locked.task is not None
    return task_lifecycle.commit(locked, 1, locked.task.id, [TaskStarted()], NOW)


def cancelled(locked: Locked) -> Change:
    return task_lifecycle.request_cancel(locked, intent())


def stopping(locked: Locked) -> Change:
    return workspace_lifecycle.request_stop(locked, intent())


def stopped(locked: Locked) -> Change:
    return workspace_lifecycle.finish_stop(locked, 1, NOW, work_stopped=True)


RUNNING = (placed, registered, submitted, started)
STATES: dict[str, tuple[Callable[[Locked], Change], ...]] = {
    "not placed": (),
    "placed": (placed,),
    "idle": (placed, registered),
    "submitted": (placed, registered, submitted),
    "running": RUNNING,
    "cancel requested": (*RUNNING, cancelled),
    "stopping": (*RUNNING, stopping),
    "stopped": (placed, registered, stopping, stopped),
}


@pytest.mark.parametrize("steps", STATES.values(), ids=STATES)
async def test_an_agent_of_before_is_fenced_and_nothing_else_is_changed(
    store: PostgresStore, database_url: str, steps: tuple[Callable[[Locked], Change], ...]
) -> None:
    """After the fence, the existing pod belongs to another run, so the controller replaces it."""
    starting = workspace(WorkspaceStatus.PROVISIONING)
    await store.create_workspace(starting)
    for step in steps:
        await store.transition(starting.id, step)
    before, tasks = (
        await store.get_workspace(starting.id),
        await store.list_tasks(starting.id, None, 9),
    )
    assert before is not None
    assert await asyncio.to_thread(fence, database_url) == 1
    after = await store.get_workspace(starting.id)
    assert after is not None and after.epoch > before.epoch
    run_id = "fenced" if before.run_id else None
    assert after == replace(before, epoch=after.epoch, run_id=run_id)
    assert await store.list_tasks(starting.id, None, 9) == tasks
    runtime, agent = Runtime(store, lambda: NOW, 60), AgentIdentity(starting.id, 1)
    task_id = tasks[0].id if tasks else "task_1"
    for directive in (
        await runtime.heartbeat(agent, task_id, Phase.NONE),
        await runtime.register(agent, "127.0.0.1:8"),
        await runtime.commit_events(agent, task_id, [TaskStarted()]),
    ):
        assert directive.fenced


async def test_a_fence_is_refused_while_a_controller_leads(
    store: PostgresStore, database_url: str, other_url: str
) -> None:
    idle = workspace()
    await store.create_workspace(idle)
    async with asyncio.timeout(LIMIT_SECONDS), Leadership(other_url).acquired():
        with pytest.raises(OperatorError, match="A controller leads"):
            await asyncio.to_thread(fence, database_url)
    assert await epoch_of(store, idle.id) == 1


async def test_no_controller_begins_to_lead_before_the_end_of_a_fence(
    store: PostgresStore, database_url: str, other_url: str
) -> None:
    idle = workspace()
    await store.create_workspace(idle)
    # The epoch that the new leader finds.
    found: list[int] = []

    async def lead() -> None:
        async with Leadership(other_url).acquired():
            found.append(await epoch_of(store, idle.id))

    async with held(database_url, idle.id) as waiting:
        fencing = asyncio.create_task(asyncio.to_thread(fence, database_url))
        await waiting(1)
        leading = asyncio.create_task(lead())
        await asked_for_the_lock(database_url)
        assert found == []
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await fencing == 1
        await leading
    assert found[0] > 1


async def asked_for_the_lock(database_url: str) -> None:
    """Waits until a controller has asked for the leader's lock and has not got it."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'other' AND state = 'idle' AND query LIKE '%advisory_lock%'"
    )
    async with await AsyncConnection.connect(database_url, autocommit=True) as observer:

        async def has_asked() -> bool:
            return await (await observer.execute(query)).fetchone() == (1,)

        await eventually_async(has_asked)


async def at_the_same_time(
    database_url: str, workspace_id: str, other: Coroutine[Any, Any, Any], *, fence_is_first: bool
) -> Any:
    """Runs a fence and `other`. `fence_is_first` says which one locks the workspace first.

    Returns the result of `other`.
    """
    fencing = asyncio.to_thread(fence, database_url)
    async with held(database_url, workspace_id) as waiting:
        tasks = []
        for number, call in enumerate((fencing, other) if fence_is_first else (other, fencing), 1):
            tasks.append(asyncio.create_task(call))
            await waiting(number)
    async with asyncio.timeout(LIMIT_SECONDS):
        return (await asyncio.gather(*tasks))[fence_is_first]


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_a_workspace_that_is_resumed_meanwhile_has_an_epoch_of_its_own(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    failed = workspace()
    await store.create_workspace(failed)
    await set_status(store, failed.id, WorkspaceStatus.FAILED)
    resuming = store.transition(failed.id, lambda locked: workspace_lifecycle.resume(locked, NOW))
    resumed = await at_the_same_time(
        database_url, failed.id, resuming, fence_is_first=fence_is_first
    )
    epoch = await epoch_of(store, failed.id)
    # The epoch of the resumed workspace is current only if it was resumed after the fence.
    assert (epoch == resumed.workspace.epoch) is fence_is_first
    assert epoch > 2


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_a_cancellation_is_not_lost(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    busy, open_task = await with_task(store)
    cancelling = store.record_cancellation(permission(), busy.id, None, intent())
    found = await at_the_same_time(database_url, busy.id, cancelling, fence_is_first=fence_is_first)
    assert found.recorded
    assert await epoch_of(store, busy.id) > busy.epoch
    stored = await store.get_task(busy.id, open_task.id)
    assert stored is not None and stored.cancel == intent()


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_an_agent_that_registers_meanwhile_is_fenced(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    runtime, starting = Runtime(store, lambda: NOW, 60), workspace(WorkspaceStatus.PROVISIONING)
    agent = AgentIdentity(starting.id, 1)
    await store.create_workspace(starting)
    await store.transition(starting.id, placed)
    registering = runtime.register(agent, "127.0.0.1:9")
    directive = await at_the_same_time(
        database_url, starting.id, registering, fence_is_first=fence_is_first
    )
    assert directive.fenced is fence_is_first
    assert (await runtime.register(agent, "127.0.0.1:9")).fenced


def test_a_fence_that_is_killed_changes_nothing(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        add(database_url, ws_1=3, ws_2=3)

        def sessions(condition: str) -> int:
            row = connection.execute(f"{_SESSIONS} AND {condition}".encode(), (COMMAND_NAME,))
            return int((row.fetchone() or (0,))[0])

        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM workspaces WHERE id = 'ws_2' FOR UPDATE")
            process = subprocess.Popen(
                [sys.executable, "-m", "evershell.commands", "fence"],
                env={**os.environ, "DATABASE_URL": database_url},
            )
            try:
                eventually(lambda: sessions("wait_event_type = 'Lock'"))
            finally:
                process.kill()
                process.wait(LIMIT_SECONDS)
            # The server notices the end of the process although the lock is still held.
            eventually(lambda: not sessions("true"))
        assert connection.execute("SELECT DISTINCT epoch FROM workspaces").fetchall() == [(3,)]
    assert fence(database_url) == 2
