"""The audit log in PostgreSQL: its queue, its partitions, and what the service's role may do."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter
from evershell.store import audit
from evershell.store.audit import AuditQueue, add_partitions, prune, store_audit_entries
from evershell.store.migrate import migrate
from evershell.store.pool import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.audit import audit_entry
from tests.support.store.examples import intent, permission, with_task
from tests.support.waiting import eventually_async

WRITE_SECONDS = 30.0


async def listed(pool: Pool) -> list[AuditEntry]:
    store = PostgresStore(pool, machine_clock)
    return list(await store.list_audit_entries(permission(), AuditFilter(), None, 100_000))


class Writes:
    """Stands in for the database, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[Sequence[AuditEntry]] = []
        self.unavailable = False

    async def __call__(self, entries: Sequence[AuditEntry]) -> None:
        if self.unavailable:
            raise UnavailableError("the database is unavailable")
        self.batches.append(entries)


async def test_entries_are_stored_within_a_second(pool: Pool) -> None:
    queue = AuditQueue(partial(store_audit_entries, pool))
    entry = audit_entry(outcome="permission_denied")
    queue.put(entry, uncertain=False)
    queue.put(entry, uncertain=False)
    await eventually_async(lambda: listed(pool), WRITE_SECONDS)
    assert await listed(pool) == [entry]
    assert audit._GATHER_SECONDS < 1
    last = audit_entry(outcome="rate_limited")
    queue.put(last, uncertain=True)
    await queue.drained()
    assert {each.id for each in await listed(pool)} == {entry.id, last.id}


async def test_uncertain_entries_wait_until_the_call_cannot_store_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "UNCERTAIN_SECONDS", 0.2)
    monkeypatch.setattr(audit, "_GATHER_SECONDS", 0.0)
    writes, now = Writes(), asyncio.get_running_loop().time
    queue, began = AuditQueue(writes), now()
    queue.put(uncertain := audit_entry(), uncertain=True)
    queue.put(certain := audit_entry(), uncertain=False)
    await eventually_async(lambda: len(writes.batches) == 2)
    assert writes.batches == [[certain], [uncertain]]
    assert now() - began >= 0.2


async def test_entries_are_kept_while_the_database_is_away_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_MAX_ENTRIES", 5)
    monkeypatch.setattr(audit, "_MAX_BATCH", 3)
    monkeypatch.setattr(audit, "_GATHER_SECONDS", 0.01)
    writes, lost = Writes(), list[int]()
    queue = AuditQueue(writes, lost.append)
    writes.unavailable = True
    entries = [audit_entry() for _ in range(7)]
    with capture_logs() as logs:
        for entry in entries:
            queue.put(entry, uncertain=False)
        await eventually_async(lambda: "audit_not_stored" in [each["event"] for each in logs])
        writes.unavailable = False
        await eventually_async(lambda: sum(map(len, writes.batches)) == 5)
    assert {entry.id for batch in writes.batches for entry in batch} == {
        entry.id for entry in entries[:5]
    }
    assert lost == [2]
    assert {"event": "audit_entries_lost", "entries": 2, "log_level": "error"} in logs


async def test_the_entries_that_the_database_does_not_take_at_the_end_are_lost() -> None:
    writes, lost = Writes(), list[int]()
    queue = AuditQueue(writes, lost.append)
    writes.unavailable = True
    queue.put(audit_entry(), uncertain=False)
    queue.put(audit_entry(), uncertain=True)
    await queue.drained()
    assert lost == [2]


async def test_an_entry_that_the_database_refuses_does_not_stop_the_queue(pool: Pool) -> None:
    lost = list[int]()
    queue = AuditQueue(partial(store_audit_entries, pool), lost.append)
    good = [audit_entry(), audit_entry()]
    for entry in (good[0], audit_entry(reason="a\0b"), good[1]):
        queue.put(entry, uncertain=False)
    await queue.drained()
    assert {each.id for each in await listed(pool)} == {each.id for each in good}
    assert lost == [1]


@pytest.fixture
def owner(empty_database_url: str) -> Iterator["Connection[tuple[object, ...]]"]:
    """A session of the role that owns the tables."""
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


def partitions(owner: "Connection[tuple[object, ...]]") -> list[str]:
    found = owner.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits "
        "WHERE inhparent = 'audit_entries'::regclass ORDER BY 1"
    )
    return [str(name) for (name,) in found]


def unusable_tables(owner: "Connection[tuple[object, ...]]") -> list[object]:
    """The tables, except those of the audit log and of migrations, that the service may not use."""
    found = owner.execute(
        "SELECT relname FROM pg_class "
        "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') "
        "AND relname !~ '^audit_entries|yoyo' AND NOT ("
        "has_table_privilege('evershell_service', oid, 'SELECT') "
        "AND has_table_privilege('evershell_service', oid, 'INSERT') "
        "AND has_table_privilege('evershell_service', oid, 'UPDATE') "
        "AND has_table_privilege('evershell_service', oid, 'DELETE'))"
    )
    return [name for (name,) in found]


def count(owner: "Connection[tuple[object, ...]]", table: str) -> object:
    found = owner.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return found[0]


async def test_each_month_has_a_partition(
    owner: "Connection[tuple[object, ...]]", empty_database_url: str
) -> None:
    now = datetime.now(UTC)
    assert len(partitions(owner)) == 1 + 13
    async with open_pool(empty_database_url, min_size=1) as pool:
        await store_audit_entries(pool, [audit_entry(now)])
        assert count(owner, f"audit_entries_{now:%Y_%m}") == 1
        # The months of these entries have no partition.
        late = [audit_entry(now + timedelta(days=31 * 24)), audit_entry(now - timedelta(days=900))]
        await store_audit_entries(pool, late)
        assert count(owner, "audit_entries_default") == 2
        add_partitions(owner, late[0].time)
        assert count(owner, "audit_entries_default") == 1
        assert count(owner, f"audit_entries_{late[0].time:%Y_%m}") == 1
        assert len(await listed(pool)) == 3
        add_partitions(owner, now)


async def test_prune_removes_whole_months(
    owner: "Connection[tuple[object, ...]]", empty_database_url: str
) -> None:
    add_partitions(owner, datetime(2024, 1, 5, tzinfo=UTC))
    moments = [
        datetime(2023, 5, 1, tzinfo=UTC),
        datetime(2024, 1, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(2024, 2, 1, tzinfo=UTC),
        datetime(2024, 2, 20, tzinfo=UTC),
    ]
    async with open_pool(empty_database_url, min_size=1) as pool:
        await store_audit_entries(pool, [audit_entry(moment) for moment in moments])
        assert prune(owner, datetime(2024, 2, 15, tzinfo=UTC)) == 1
        assert [each.time for each in await listed(pool)] == [moments[3], moments[2]]
        assert "audit_entries_2024_01" not in partitions(owner)
        assert prune(owner, datetime(2024, 3, 1, tzinfo=UTC)) == 1
        assert await listed(pool) == []
        assert prune(owner, datetime(2024, 3, 1, tzinfo=UTC)) == 0


async def test_the_role_of_the_service_only_adds_and_reads_entries(
    owner: "Connection[tuple[object, ...]]", empty_database_url: str
) -> None:
    owner.execute("DROP ROLE IF EXISTS evershell_service")
    owner.execute("CREATE ROLE evershell_service LOGIN")
    service_url = make_conninfo(empty_database_url, user="evershell_service")
    try:
        migrate(empty_database_url, service_url)
        migrate(empty_database_url, service_url)
        async with open_pool(service_url, min_size=1) as pool:
            store = PostgresStore(pool, machine_clock)
            busy, _ = await with_task(store)
            entry = audit_entry(workspace_id=busy.id)
            found = await store.record_cancellation(
                permission(), busy.id, None, intent(), "", entry
            )
            assert found.recorded
            await store_audit_entries(pool, [audit_entry()])
            assert len(await listed(pool)) == 2
        assert unusable_tables(owner) == []
        month = f"audit_entries_{datetime.now(UTC):%Y_%m}"
        with psycopg.connect(service_url, autocommit=True) as service:
            for statement in (
                "UPDATE audit_entries SET outcome = 'ok'",
                "DELETE FROM audit_entries",
                "TRUNCATE audit_entries",
                "DELETE FROM audit_entries_default",
                f"DROP TABLE {month}",
                "ALTER TABLE audit_entries DROP COLUMN reason",
                f"INSERT INTO {month} SELECT * FROM audit_entries",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    service.execute(statement)
    finally:
        owner.execute("DROP OWNED BY evershell_service")
        owner.execute("DROP ROLE evershell_service")
