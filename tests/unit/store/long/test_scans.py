"""Lists and scans do not read more rows if there are more idle workspaces and ended tasks."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest
from psycopg import AsyncConnection

from evershell.core.due import Kind
from evershell.core.task_filter import OrgListFilter
from evershell.store import due, fleet_queries, task_lists, transitions, workspaces
from tests.support.store.due import BOUNDS
from tests.support.store.examples import NOW

_IDLE, _BUSY, _CANCELLED = 100_000, 200, 20
_LIST = asdict(OrgListFilter()) | {
    "org_id": "org",
    "own_only": False,
    "user_id": "user_1",
    "before_id": "~",
    "limit": 201,
    # psycopg sends a list as an array, but no tuple.
    "workspace_ids": [],
}


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[AsyncConnection[Any]]:
    """A database with many idle workspaces and ended tasks, and a few in other states."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            """
            INSERT INTO workspaces (id, org_id, name, status, status_reason, created_at, updated_at,
                epoch, last_seq, lease_expires_at)
            SELECT 'ws_' || lpad(n::text, 26, '0'), 'org', '',
                CASE WHEN n <= 5 THEN 'provisioning' WHEN n <= 10 THEN 'stopping' ELSE 'idle' END,
                '', now(), now(), 1, 0, now() + interval '20 s'
            FROM generate_series(1, %s) n
            """,
            (_IDLE,),
        )
        await connection.execute(
            """
            INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status,
                phase, iterations, created_at, completed_at, reason, result, forced, input_tokens,
                output_tokens, model_calls, tool_calls, cancel_requested_by,
                cancel_credential_kind, cancel_requested_at, cancel_reason, cancel_request_id)
            SELECT 'task_' || lpad(n::text, 26, '0'), 'ws_' || lpad(n::text, 26, '0'), '', '{}', 1,
                CASE WHEN n <= %(busy)s THEN 'running' ELSE 'cancelled' END,
                '', 0, now(), CASE WHEN n > %(busy)s THEN now() END, '', '', false, 0, 0, 0, 0,
                CASE WHEN intent THEN 'user_1' END, CASE WHEN intent THEN 'session' END,
                CASE WHEN intent THEN now() END, CASE WHEN intent THEN '' END,
                CASE WHEN intent THEN 'req' END
            FROM generate_series(1, %(idle)s) n,
                LATERAL (SELECT n <= %(cancelled)s OR n > %(busy)s AS intent) AS i
            """,
            {"idle": _IDLE, "busy": _BUSY, "cancelled": _CANCELLED},
        )
        await connection.execute(
            "UPDATE workspaces w SET current_task_id = t.id FROM tasks t "
            "WHERE t.workspace_id = w.id AND t.status = 'running'"
        )
        await connection.execute("VACUUM ANALYZE workspaces, tasks")
        yield connection


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (due.SQL.due, due.parameters(NOW, dict.fromkeys({*Kind} - {Kind.LEASE}), 500, BOUNDS)),
        (fleet_queries.SQL.list_wanted_pods, {"after_id": "", "limit": 500}),
        (fleet_queries.SQL.lease_seconds_left, {"now": None, "workspace_id": f"ws_{1:026}"}),
    ],
    ids=["due", "wanted pods", "lease"],
)
async def test_a_scan_reads_no_table_as_a_whole(
    connection: AsyncConnection[Any], query: str, parameters: dict[str, object]
) -> None:
    cursor = await connection.execute(f"EXPLAIN (ANALYZE) {query}".encode(), parameters)
    plan = [line for (line,) in await cursor.fetchall()]
    assert not [line for line in plan if "Seq Scan" in line and "never executed" not in line]


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (transitions.SQL.get_parent, {"org_id": "org", "task_id": f"task_{1:026}"}),
        (task_lists.SQL.list_descendants, _LIST | {"root_task_id": "t"}),
        (task_lists.SQL.list_children, _LIST | {"parent_task_id": "t"}),
    ],
    ids=["the parent of a child", "the tasks of a root", "the children of a task"],
)
async def test_a_tree_is_read_by_its_indexes(
    connection: AsyncConnection[Any], query: str, parameters: dict[str, object]
) -> None:
    """The query reads neither tasks outside of trees nor tasks of other trees."""
    cursor = await connection.execute(f"EXPLAIN {query}".encode(), parameters)
    plan = "\n".join(line for (line,) in await cursor.fetchall())
    assert "tasks_of_root" in plan or "tasks_in_tree" in plan or "tasks_of_parent" in plan, plan
    assert "Seq Scan" not in plan and "tasks_one_open" not in plan, plan


@pytest.mark.parametrize(
    "query", [workspaces.SQL.list_named_workspaces, task_lists.SQL.list_active_of_named]
)
async def test_a_list_of_200_workspaces_reads_no_other_ones(
    connection: AsyncConnection[Any], query: str
) -> None:
    named = _LIST | {"workspace_ids": [f"ws_{n:026}" for n in range(1, 201)]}
    cursor = await connection.execute(f"EXPLAIN {query}".encode(), named)
    plan = "\n".join(line for (line,) in await cursor.fetchall())
    assert "using workspaces_pkey on workspaces" in plan, plan
    assert "Seq Scan" not in plan and "workspaces_with_task" not in plan, plan


async def test_a_list_of_active_tasks_reads_no_ended_ones(connection: AsyncConnection[Any]) -> None:
    cursor = await connection.execute(f"EXPLAIN {task_lists.SQL.list_active}".encode(), _LIST)
    plan = "\n".join(line for (line,) in await cursor.fetchall())
    assert "using workspaces_with_task on workspaces" in plan, plan
    assert "Seq Scan" not in plan and "Sort" not in plan, plan
