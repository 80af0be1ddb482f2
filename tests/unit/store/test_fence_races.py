"""A fence at the same time as other programs, in orders that a lock forces."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from evershell.core import workspace_lifecycle
from evershell.core.errors import OperatorError
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.workspace import WorkspaceStatus
from evershell.store.connections import COMMAND_NAME, open_pool
from evershell.store.fence import fence
from evershell.store.leadership import Leadership
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import (
    NOW,
    intent,
    permission,
    set_status,
    with_task,
    workspace,
)
from tests.support.store.locks import held
from tests.support.waiting import eventually, eventually_async

RUN_ID = "run_1"
_ADD = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, epoch, last_seq
    ) VALUES (%s, 'org_1', '', 'idle', '', now(), now(), 3, 0)
"""
_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = %s
"""
LIMIT_SECONDS = 10


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
    first, last = workspace(), workspace()
    for each in (first, last):
        await store.create_workspace(each)
    # The epochs that the leader finds.
    found: list[int] = []

    async def lead() -> None:
        async with Leadership(other_url).acquired():
            found.extend([await epoch_of(store, each.id) for each in (first, last)])

    async with held(database_url, last.id) as waiting:
        fencing = asyncio.create_task(asyncio.to_thread(fence, database_url))
        await waiting(1)
        leading = asyncio.create_task(lead())
        await asked_for_the_lock(database_url)
        assert found == []
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await fencing == 2
        await leading
    assert min(found) > 1


async def asked_for_the_lock(database_url: str) -> None:
    """Waits until a controller has asked for the lock of the leader and has not got it."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'other' AND state = 'idle' AND query LIKE '%advisory_lock%'"
    )
    async with await AsyncConnection.connect(database_url, autocommit=True) as observer:

        async def has_asked() -> bool:
            return await (await observer.execute(query)).fetchone() == (1,)

        await eventually_async(has_asked)


async def one_after_the_other(
    database_url: str, workspace_id: str, *calls: Coroutine[Any, Any, Any]
) -> list[Any]:
    """Runs calls that wait for the lock of the workspace, so that they get it in this order."""
    async with held(database_url, workspace_id) as waiting:
        tasks = []
        for number, call in enumerate(calls, 1):
            tasks.append(asyncio.create_task(call))
            await waiting(number)
    async with asyncio.timeout(LIMIT_SECONDS):
        return await asyncio.gather(*tasks)


def in_order(is_first: bool, fencing: Any, other: Any) -> tuple[Any, Any]:
    return (fencing, other) if is_first else (other, fencing)


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_a_workspace_that_is_resumed_meanwhile_has_an_epoch_of_its_own(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    failed = workspace()
    await store.create_workspace(failed)
    await set_status(store, failed.id, WorkspaceStatus.FAILED)
    fencing = asyncio.to_thread(fence, database_url)
    resuming = store.transition(failed.id, lambda locked: workspace_lifecycle.resume(locked, NOW))
    calls = in_order(fence_is_first, fencing, resuming)
    resumed = (await one_after_the_other(database_url, failed.id, *calls))[fence_is_first]
    epoch = await epoch_of(store, failed.id)
    # The epoch that the worker has handed out is over, unless it was handed out after the fence.
    assert (epoch == resumed.workspace.epoch) is fence_is_first
    assert epoch > 2


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_a_cancellation_is_not_lost(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    busy, open_task = await with_task(store)
    fencing = asyncio.to_thread(fence, database_url)
    cancelling = store.record_cancellation(permission(), busy.id, None, intent())
    calls = in_order(fence_is_first, fencing, cancelling)
    answers = await one_after_the_other(database_url, busy.id, *calls)
    assert answers[fence_is_first].recorded
    found = await store.get_workspace(busy.id)
    task = await store.get_task(busy.id, open_task.id)
    assert found is not None and found.epoch > busy.epoch and found.last_seq == 2
    assert task is not None and task.cancel == intent()
    events = await store.list_events(busy.id, 0, 10)
    assert [str(each.type) for each in events] == ["task_submitted", "task_cancel_requested"]


@pytest.mark.parametrize("fence_is_first", [True, False])
async def test_an_agent_that_registers_meanwhile_is_fenced(
    store: PostgresStore, database_url: str, fence_is_first: bool
) -> None:
    runtime = Runtime(store, lambda: NOW, 60)
    starting = workspace(WorkspaceStatus.PROVISIONING)
    agent = AgentIdentity(starting.id, 1)
    await store.create_workspace(starting)
    await store.transition(
        starting.id,
        lambda locked: workspace_lifecycle.place(locked, 1, RUN_ID, NOW, work_stopped=True),
    )
    fencing = asyncio.to_thread(fence, database_url)
    calls = in_order(fence_is_first, fencing, runtime.register(agent, "127.0.0.1:9"))
    answers = await one_after_the_other(database_url, starting.id, *calls)
    assert answers[fence_is_first].fenced is fence_is_first
    assert (await runtime.register(agent, "127.0.0.1:9")).fenced
    found = await store.get_workspace(starting.id)
    assert found is not None and found.run_id == "fenced"


async def test_a_controller_that_places_a_workspace_meanwhile_does_not_share_its_epoch(
    store: PostgresStore, database_url: str
) -> None:
    """A leader that has not noticed yet that it has lost its lock."""
    idle = workspace()
    await store.create_workspace(idle)
    placing = store.transition(
        idle.id, lambda locked: workspace_lifecycle.place(locked, 1, RUN_ID, NOW, work_stopped=True)
    )
    fencing = asyncio.to_thread(fence, database_url)
    _, change = await one_after_the_other(database_url, idle.id, fencing, placing)
    assert change.workspace.run_id is None
    assert await epoch_of(store, idle.id) > 1


def test_a_fence_that_is_killed_changes_nothing(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name in ("ws_1", "ws_2"):
            connection.execute(_ADD, (name,))

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
            # The server notices it although the lock is still held.
            eventually(lambda: not sessions("true"))
        assert connection.execute("SELECT DISTINCT epoch FROM workspaces").fetchall() == [(3,)]
    assert fence(database_url) == 2
