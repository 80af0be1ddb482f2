"""A page of a list reads a bounded number of rows, and the pages together have every item."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from evershell.core.caller import Permission
from evershell.core.event import AuditFilter
from evershell.core.task import TaskStatus
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter
from evershell.core.validation import Listed, Page
from evershell.store import scans
from evershell.store.pool import Pool, connected, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import permission

# The number of items of each kind: several times as many as a page reads.
COUNT = 5 * scans.MAX_ROWS
PLACE, ROOT = "ws_1", "task_0"
SOME = tuple(f"ws_{COUNT + number}" for number in range(200))
# One item in RARE matches a filter.
RARE = 1_700
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OWN = permission(own_only=True, user_id="user_9")
FILL = f"""
    INSERT INTO workspaces (id, org_id, name, status, status_reason, created_at, updated_at, epoch,
        last_seq, created_by_user_id, current_task_id)
    SELECT 'ws_' || n, CASE WHEN n % 2 = 0 THEN 'org_b' ELSE 'org_a' END, '', 'busy', '', now(),
        now(), 1, 0, CASE WHEN n % {RARE} = 0 THEN 'user_9' ELSE 'user_1' END, 'task_' || n
    FROM generate_series(0, 2 * {COUNT}) n;
    INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
        iterations, created_at, completed_at, reason, result, forced, input_tokens, output_tokens,
        model_calls, tool_calls, ancestor_ids)
    SELECT 'task_' || n, '{PLACE}', '', '{{}}', 1,
        CASE WHEN n % {RARE} = 0 THEN 'failed' ELSE 'completed' END, '', 0, now(), now(), '', '',
        false, 0, 0, 0, 0, CASE WHEN n > 0 THEN ARRAY['{ROOT}'] END
    FROM generate_series(0, {COUNT}) n;
    INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
        iterations, created_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls)
    SELECT 'task_' || n, 'ws_' || n, '', '{{}}', 1, 'running', '', 0, now(), '', '', false, 0, 0,
        0, 0
    FROM generate_series({COUNT} + 1, 2 * {COUNT}) n;
    INSERT INTO audit_entries (id, time, org_id, actor_id, credential_kind, credential_id, rpc,
        workspace_id, task_id, outcome, reason, request_id, trace_id, client_address)
    SELECT 'aud_' || lpad(n::text, 9, '0'), now(),
        CASE WHEN n <= {COUNT} THEN 'org_a' ELSE 'org_b' END, rare, '', '', rare,
        CASE WHEN n % 2 = 0 THEN '{PLACE}' ELSE 'ws_2' END, rare, rare, '', '', '', ''
    FROM generate_series(1, 4 * {COUNT}) n,
        LATERAL (SELECT CASE WHEN n % {RARE} = 0 THEN 'rare' ELSE 'usual' END AS rare) each;
    ANALYZE workspaces, tasks, audit_entries;
"""

# Lists with filters that few rows match: the name, the table, and the condition of the rows.
MATCHING = [
    (f"audit by {name}", "audit_entries", f"org_id = 'org_a' AND {name} = 'rare'")
    for name in ("actor_id", "rpc", "outcome")
] + [
    (
        "audit of workspace by outcome",
        "audit_entries",
        f"org_id = 'org_a' AND workspace_id = '{PLACE}' AND outcome = 'rare'",
    ),
    ("tasks by status", "tasks", f"workspace_id = '{PLACE}' AND status = 'failed'"),
]

Read = Callable[[PostgresStore, Permission, "str | None"], Awaitable[Listed[Any]]]


def audit(**fields: Any) -> Read:
    return lambda store, by, before: store.list_audit_entries(by, AuditFilter(**fields), before, 3)


def org_tasks(**fields: Any) -> Read:
    return lambda store, by, before: store.list_org_tasks(by, OrgListFilter(**fields), before, 3)


def tasks(status: TaskStatus) -> Read:
    wanted = ListFilter(statuses=frozenset({status}))
    return lambda store, by, before: store.list_tasks(PLACE, before, 3, wanted)


LISTS: dict[str, Read] = {
    "audit": audit(),
    **{f"audit by {name}": audit(**{name: "rare"}) for name in ("actor_id", "rpc", "outcome")},
    "audit by task": audit(task_id="rare"),
    "audit of workspace": audit(workspace_id=PLACE),
    "audit of workspace by outcome": audit(workspace_id=PLACE, outcome="rare"),
    "audit without a match": audit(outcome="unknown"),
    "audit of a time": audit(start_time=EPOCH, end_time=EPOCH + timedelta(days=36_500)),
    "workspaces": lambda store, by, before: store.list_workspaces(by, before, 3),
    "some workspaces": lambda store, by, before: store.list_workspaces(by, before, 3, SOME),
    "tasks by status": tasks(TaskStatus.FAILED),
    "tasks without a match": tasks(TaskStatus.CANCELLED),
    "tree": org_tasks(root_task_id=ROOT),
    "tree in another workspace": org_tasks(root_task_id=ROOT, workspace_id="ws_2"),
    "children": org_tasks(parent_task_id=ROOT),
    "children in another workspace": org_tasks(parent_task_id=ROOT, workspace_id="ws_2"),
    "active": org_tasks(active=True),
    "active in tree": org_tasks(active=True, root_task_id=ROOT),
    "active in workspace": org_tasks(active=True, workspace_id=f"ws_{COUNT + 1}"),
    "active in some workspaces": org_tasks(active=True, workspace_ids=SOME),
    "tree in some workspaces": org_tasks(root_task_id=ROOT, workspace_ids=SOME),
}
TABLES = ("audit_entries%", "tasks", "workspaces")


@pytest.fixture
def filled(database_url: str) -> Iterator[Connection[Any]]:
    """A database in which the newer audit entries belong to another organization."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(FILL.encode())
        yield connection


@pytest.fixture
async def pool(filled: Connection[Any], database_url: str) -> AsyncIterator[Pool]:
    """A pool of one connection."""
    async with open_pool(database_url, min_size=1, max_size=1) as opened:
        # The tests are about rows, so slow lists are not ended.
        opened.lists.answer_seconds = 60
        yield opened


async def rows_read(pool: Pool, tables: str) -> int:
    """How many rows and index entries have been read from the tables with names LIKE `tables`."""
    async with connected(pool) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        cursor = await connection.execute(
            "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname LIKE %(like)s)"
            " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname LIKE %(like)s)"
            " AS number",
            {"like": tables},
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row.number)


@pytest.mark.parametrize("by", [permission(), OWN], ids=["all", "own"])
async def test_a_page_reads_a_bounded_number_of_rows(pool: Pool, by: Permission) -> None:
    """A page reads each row once or twice, and the row's workspace once to find the creator."""
    store = PostgresStore(pool, machine_clock)
    for name, read in LISTS.items():
        # From the sixth execution on, PostgreSQL may use a generic plan.
        for _ in range(5):
            await read(store, by, None)
        before = {table: await rows_read(pool, table) for table in TABLES}
        assert len(await read(store, by, None)) <= 3
        for table, count in before.items():
            assert await rows_read(pool, table) - count < 4 * scans.MAX_ROWS, (name, table)
    before_count = await rows_read(pool, "tasks")
    assert await store.count_tasks(PLACE, EVERY_TASK) == scans.MAX_ROWS
    assert await rows_read(pool, "tasks") - before_count < 2 * scans.MAX_ROWS


async def temporary_files(pool: Pool) -> int:
    """How many temporary files statements have written."""
    async with connected(pool) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        cursor = await connection.execute(
            "SELECT temp_files AS number FROM pg_stat_database WHERE datname = current_database()"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row.number)


async def test_no_list_writes_temporary_files(pool: Pool, filled: Connection[Any]) -> None:
    """The texts have about the greatest length that PostgreSQL stores inside a row."""
    filled.execute("UPDATE tasks SET description = repeat('x', 1800)")
    store = PostgresStore(pool, machine_clock)
    before = await temporary_files(pool)
    for name, read in LISTS.items():
        for by in (permission(), OWN):
            await read(store, by, None)
            assert await temporary_files(pool) == before, name
    await store.count_tasks(PLACE, EVERY_TASK)
    assert await temporary_files(pool) == before
    async with connected(pool) as connection:
        await connection.execute("SELECT 1 FROM tasks ORDER BY description, id DESC OFFSET 10")
    assert await temporary_files(pool) > before


async def ids_of(read: Read, store: PostgresStore, by: Permission) -> tuple[list[str], int]:
    """The ids of all items, read in pages of two, and the number of empty pages."""
    ids: list[str] = []
    empty = 0
    before: str | None = None
    while True:
        found = await read(store, by, before)
        items, token = Page(2, before).cut(found)
        ids += [each.id for each in items]
        empty += not items
        if not token:
            return ids, empty
        before = Page.of(2, token).before_id


async def test_the_pages_have_every_item_once(pool: Pool, filled: Connection[Any]) -> None:
    store = PostgresStore(pool, machine_clock)
    for name, table, condition in MATCHING:
        query = f"SELECT id FROM {table} WHERE {condition} ORDER BY id DESC"
        expected = [id_ for (id_,) in filled.execute(query.encode())]
        assert len(expected) > 1, name
        ids, empty = await ids_of(LISTS[name], store, permission())
        assert ids == expected, name
        assert empty > 0, name
    for name in ("audit without a match", "tasks without a match", "tree in another workspace"):
        assert (await ids_of(LISTS[name], store, permission()))[0] == []
    # The list of a tree ends with the root, after the descendants.
    (*_, last), _ = await ids_of(
        lambda store, by, before: store.list_org_tasks(
            by, OrgListFilter(root_task_id=ROOT), before or "task_2", 3
        ),
        store,
        permission(),
    )
    assert last == ROOT
