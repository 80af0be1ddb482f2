"""Slow or frequent work of one kind does not delay the controller's work of other kinds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from evershell.core.bounds import Bounds
from evershell.core.due import Kind
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.fleet.controller import Controller
from evershell.fleet.parts import Parts
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.fleet import RUN_ID, FakePods
from tests.support.waiting import eventually_async
from tests.support.world import FakeAgents

MANY = 10_000
# These times are so long that no agent is overdue, except agents that broke a rule.
BOUNDS = Bounds(
    model_timeout_seconds=3600,
    tool_timeout_seconds=3600,
    lease_seconds=3600,
    start_seconds=3600,
)
# For each kind of work: the values of columns with which a workspace is due for it. TASKS has the
# values of columns of the workspace's task.
WORKSPACES: dict[Kind, dict[str, str]] = {
    Kind.OVERDUE: {"agent_breach": "'it lied'"},
    Kind.LEASE: {"lease_expires_at": "now() - interval '1 h'"},
    Kind.TASK_LIMIT: {"status": "'busy'"},
    Kind.TREE_LIMIT: {"status": "'busy'"},
    Kind.UNSTARTED: {"status": "'provisioning'"},
    Kind.CANCELLATION: {"status": "'busy'"},
    Kind.START: {"status": "'provisioning'"},
    Kind.STOP: {"status": "'stopping'"},
    Kind.SUSPENSION: {"status": "'suspended'"},
    Kind.REMOVAL: {"status": "'deleting'", "run_id": "NULL"},
    Kind.CHECK: {},
}
CANCELLED = {
    "cancel_requested_by": "'user_1'",
    "cancel_credential_kind": "'session'",
    "cancel_requested_at": "now() - interval '1 min'",
    "cancel_reason": "''",
    "cancel_request_id": "''",
}
TASKS: dict[Kind, dict[str, str]] = {
    Kind.TASK_LIMIT: {"max_duration_seconds": "1"},
    Kind.TREE_LIMIT: {"max_total_tokens": "1", "in_limited_tree": "true"},
    Kind.UNSTARTED: {"status": "'submitted'", "started_at": "NULL", **CANCELLED},
    Kind.CANCELLATION: CANCELLED,
}
# The kinds whose work is only a transaction. Locks on their workspaces make this work slow.
IN_DATABASE = (Kind.TASK_LIMIT, Kind.TREE_LIMIT, Kind.UNSTARTED)


async def insert(connection: AsyncConnection[Any], kind: Kind, count: int) -> None:
    """Inserts workspaces for which this kind of work is due. Their ids begin with the kind."""
    workspace = {
        "id": f"'{kind}_' || n",
        "org_id": "'org'",
        "name": "''",
        "status": "'idle'",
        "status_reason": "''",
        "created_at": "now()",
        "updated_at": "now()",
        "epoch": "1",
        "last_seq": "0",
        "lease_expires_at": "now() + interval '1 h'",
        "agent_address": "'127.0.0.1:9'",
        "run_id": f"'{RUN_ID}'",
        **WORKSPACES[kind],
    }
    if kind in TASKS:
        workspace["current_task_id"] = f"'{kind}_' || n"
    await insert_row(connection, "workspaces", workspace, count)
    if kind in TASKS:
        task = {
            "id": f"'{kind}_' || n",
            "workspace_id": f"'{kind}_' || n",
            "description": "''",
            "metadata": "'{}'",
            "max_iterations": "1",
            "status": "'running'",
            "phase": "''",
            "iterations": "0",
            "created_at": "now()",
            "started_at": "now() - interval '1 min'",
            "reason": "''",
            "result": "''",
            "forced": "false",
            "input_tokens": "9",
            "output_tokens": "0",
            "model_calls": "0",
            "tool_calls": "0",
            **TASKS[kind],
        }
        await insert_row(connection, "tasks", task, count)


async def insert_row(
    connection: AsyncConnection[Any], table: str, row: dict[str, str], count: int
) -> None:
    query = (
        f"INSERT INTO {table} ({', '.join(row)}) SELECT {', '.join(row.values())}"
        f" FROM generate_series(1, {count}) n"
    )
    await connection.execute(query.encode())


class SlowPods(FakePods):
    """Pods and agents whose calls for one kind of work do not return."""

    def __init__(self, slow: Kind) -> None:
        super().__init__()
        self._slow = slow
        # The ids of the workspaces for which a call has begun.
        self.begun: set[str] = set()

    async def begin(self, workspace_id: str) -> None:
        self.begun.add(workspace_id)
        if workspace_id.startswith(self._slow):
            await asyncio.Event().wait()

    def is_alive(self, workspace: Workspace) -> bool:
        return not workspace.id.startswith(Kind.CHECK)

    async def wait_exit(self, workspace: Workspace) -> None:
        await asyncio.Event().wait()

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        await self.begin(workspace.id)
        return True

    async def remove(self, workspace_id: str) -> bool:
        await self.begin(workspace_id)
        return True

    async def signal(self, workspace: Workspace, task: Task) -> None:
        await self.begin(workspace.id)


class NoChanges:
    """Implements fleet.pods.Changes: no notification arrives."""

    async def wait(self, timeout_seconds: float) -> set[str]:
        await asyncio.sleep(timeout_seconds)
        return set()


@asynccontextmanager
async def locked(url: str, kind: Kind) -> AsyncIterator[None]:
    """Locks the workspaces of the kind."""
    async with await AsyncConnection.connect(url) as connection:
        query = "SELECT FROM workspaces WHERE id LIKE %s FOR UPDATE"
        await connection.execute(query, (f"{kind}_%",))
        yield
        await connection.rollback()


@pytest.mark.parametrize("many", Kind)
async def test_many_of_a_kind_delay_no_other(many: Kind, database_url: str) -> None:
    """Work of the kind `many` does not end, but all other work begins."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        for kind in Kind:
            await insert(connection, kind, MANY if kind is many else 1)
        await connection.execute("ANALYZE")
    pods, agents = SlowPods(many), FakeAgents()
    agents.meanwhile = pods.signal
    same = {many}
    if many is Kind.UNSTARTED:
        # A workspace that is due for this kind of work is also due for START and CANCELLATION.
        same |= {Kind.START, Kind.CANCELLATION}
    others = {f"{kind}_1" for kind in {*Kind} - same}

    async with (
        locked(database_url, many if many in IN_DATABASE else Kind.CHECK),
        open_pool(database_url) as pool,
        open_pool(database_url) as pool_of_test,
    ):
        # On a busy machine, the controller uses its whole pool, so the test reads with another one.
        store, reading = (PostgresStore(each, machine_clock) for each in (pool, pool_of_test))

        async def not_begun() -> set[str]:
            found = others - pods.begun
            for kind in IN_DATABASE:
                task = await reading.get_task(f"{kind}_1", f"{kind}_1")
                if task is not None and task.cancel is not None and kind is not Kind.UNSTARTED:
                    found.discard(f"{kind}_1")
                if task is not None and task.status.is_terminal:
                    found.discard(f"{kind}_1")
            return found

        async def is_begun() -> bool:
            return not await not_begun()

        parts = Parts(
            store=store,
            pods=pods,
            agents=agents,
            clock=machine_clock,
            bounds=BOUNDS,
            run_id=RUN_ID,
        )
        controller = Controller(parts, machine_clock() - timedelta(hours=1))
        leading = asyncio.create_task(controller.run(NoChanges()))
        try:
            await eventually_async(is_begun)
        except TimeoutError:
            pytest.fail(f"not begun: {await not_begun()}")
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
