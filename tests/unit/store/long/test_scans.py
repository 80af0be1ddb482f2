"""What the fleet controller reads at a scan does not grow with the number of idle workspaces."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import AsyncConnection

from evershell.store import postgres_store
from evershell.store.connections import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock

_IDLE, _BUSY, _CANCELLED = 100_000, 200, 20
# Far fewer than the 8 kB pages of the tables.
_MAX_BLOCKS = 2_000


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[AsyncConnection[Any]]:
    """A database with many idle workspaces and ended tasks, and a few of each other kind."""
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
            "UPDATE workspaces SET task_unnamed_since = now() WHERE id = %s", (f"ws_{20:026}",)
        )
        await connection.execute(
            "UPDATE workspaces SET agent_breach = 'why' WHERE id = %s", (f"ws_{21:026}",)
        )
        await connection.execute("VACUUM ANALYZE workspaces, tasks")
        yield connection


async def plan(
    connection: AsyncConnection[Any], query: str, *parameters: object
) -> tuple[set[str], set[str], int]:
    """The indexes that the query uses, the tables that it scans as a whole, and its blocks."""
    cursor = await connection.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}".encode(), parameters
    )
    row = await cursor.fetchone()
    assert row is not None
    found = row[0] if isinstance(row[0], list) else json.loads(row[0])
    top, nodes = found[0]["Plan"], [found[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return (
        {node["Index Name"] for node in nodes if "Index Name" in node},
        {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"},
        top["Shared Hit Blocks"] + top["Shared Read Blocks"],
    )


async def test_scans_use_indexes(connection: AsyncConnection[Any], pool: Pool) -> None:
    indexes, scanned, blocks = await plan(connection, postgres_store.LIST_UNSETTLED)
    assert (indexes, scanned) == ({"workspaces_unsettled", "workspaces_breached"}, set())
    assert blocks < _MAX_BLOCKS
    indexes, scanned, blocks = await plan(connection, postgres_store.LIST_CANCELLATIONS)
    assert "tasks_one_open" in indexes and not scanned
    assert blocks < _MAX_BLOCKS
    indexes, scanned, blocks = await plan(connection, postgres_store.LIST_WANTED_PODS, "", 500)
    # Nearly all workspaces have a pod here, so both indexes are equally good.
    assert indexes in ({"workspaces_with_pod"}, {"workspaces_pkey"}) and not scanned
    assert blocks < _MAX_BLOCKS
    indexes, scanned, blocks = await plan(
        connection, postgres_store.LEASE_SECONDS_LEFT, None, f"ws_{1:026}"
    )
    assert (indexes, scanned) == ({"workspaces_pkey"}, set())
    store = PostgresStore(pool, machine_clock)
    assert len(await store.list_unsettled()) == 12
    assert len(await store.list_cancellations()) == _CANCELLED
