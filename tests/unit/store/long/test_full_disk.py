"""Tests a database with a full disk or a file size limit.

Calls fail with UnavailableError, no partial change remains, and the database recovers. The tests
are skipped if a small disk cannot be mounted.
"""

import asyncio
import resource
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
import pytest

from evershell.core.change import Hold
from evershell.core.errors import UnavailableError
from evershell.core.event import EventType
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.stack import postgres
from evershell.store.connections import connected, open_pool
from evershell.store.migrate import migrate
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.small_disk import fill, free, small_disk
from tests.support.store.examples import NOW, USER, intent, permission, with_task, workspace
from tests.support.waiting import eventually_async

# PostgreSQL's own files take 42 MB, and each WAL segment takes 16 MB.
_DISK_BYTES = 96 * 1024 * 1024
# Space for some of the batches of a test.
_SPARE_BYTES = 64 * 1024
_MAX_FILE_BYTES = 17 * 1024 * 1024


@dataclass(slots=True)
class Server:
    """A PostgreSQL server with its data directory on the small disk."""

    disk: Path
    url: str = field(init=False)
    process: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> None:
        places = postgres.places(self.disk)
        postgres.initialise(places.data_dir)
        # No autovacuum, which would use up the space that a test leaves.
        settings = ("-c", "fsync=off", "-c", "autovacuum=off")
        command = [*postgres.command(places.data_dir, places.socket_dir), *settings]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.url = postgres.database_url(places.socket_dir)
        asyncio.run(postgres.wait_ready(self.url, 20))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(postgres.STOP_SIGNAL)
        self.process.wait(20)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("disk")
    with small_disk(path, _DISK_BYTES):
        yield path


@pytest.fixture(scope="module")
def server(disk: Path) -> Iterator[Server]:
    started = Server(disk)
    started.start()
    try:
        migrate(started.url)
        yield started
    finally:
        started.stop()


@dataclass(slots=True)
class Calls:
    """Makes calls and records their results.

    A call must succeed or raise UnavailableError.
    """

    succeeded: list[str] = field(default_factory=list)
    unavailable: list[str] = field(default_factory=list)

    async def make(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except UnavailableError:
            self.unavailable.append(name)
        else:
            self.succeeded.append(name)


async def test_what_needs_a_full_disk_is_unavailable_and_works_when_it_is_free(
    server: Server, disk: Path
) -> None:
    async with open_pool(server.url) as pool:
        store, calls = PostgresStore(pool, machine_clock), Calls()
        busy = [await with_task(store) for _ in range(40)]
        fill(disk)
        created: list[Workspace] = []

        async def all_have_failed() -> bool:
            created.append(workspace())
            await calls.make(created[-1].id, lambda: store.create_workspace(created[-1]))
            await calls.make("submit", lambda: with_task(store))
            await calls.make("cancel", cancel_last)
            return created[-1].id in calls.unavailable and {"submit", "cancel"} <= set(
                calls.unavailable
            )

        async def cancel_last() -> None:
            at, task = busy[-1]
            assert (
                await store.record_cancellation(permission(), at.id, task.id, intent())
            ).recorded
            busy.pop()

        await eventually_async(all_have_failed)
        # Reads need no disk space.
        for at in created:
            stored = await store.get_workspace(at.id)
            assert (stored is not None) == (at.id in calls.succeeded)
        for at, task in busy:
            left = await store.get_task(at.id, task.id)
            assert left is not None and left.cancel is None
        free(disk)
        for at, task in busy:
            assert (
                await store.record_cancellation(permission(), at.id, task.id, intent())
            ).recorded
        await with_task(store)


async def test_a_batch_and_a_hold_on_a_full_disk_are_complete_or_absent(
    server: Server, disk: Path
) -> None:
    async with open_pool(server.url) as pool:
        store, calls = PostgresStore(pool, machine_clock), Calls()
        asked = intent("because " * 9)
        batches = [[await with_task(store) for _ in range(6)] for _ in range(30)]
        holds = [
            Hold(org_id=f"org_{number}", held_by=USER, held_since=NOW, reason="because " * 60)
            for number in range(len(batches))
        ]
        fill(disk, _SPARE_BYTES)

        async def cancel(batch: list[tuple[Workspace, Task]]) -> None:
            ids = [task.id for _, task in batch]
            assert await store.cancel_tasks(permission(), ids, asked) == dict.fromkeys(ids, True)

        # The first calls have space. Then one of the batches has space for a part of it only.
        for number, (batch, hold) in enumerate(zip(batches, holds, strict=True)):
            await calls.make(f"batch {number}", partial(cancel, batch))
            await calls.make(hold.org_id, partial(store.hold_org, hold))
        assert {"batch 0", holds[0].org_id} <= set(calls.succeeded)
        assert {f"batch {len(batches) - 1}", holds[-1].org_id} <= set(calls.unavailable)
        for number, batch in enumerate(batches):
            is_done = f"batch {number}" in calls.succeeded
            for at, task in batch:
                left = await store.get_task(at.id, task.id)
                assert left is not None and (left.cancel is not None) == is_done
                log = await store.list_events(at.id, 0, 9)
                assert (EventType.TASK_CANCEL_REQUESTED in [each.type for each in log]) == is_done
        for hold in holds:
            held = await store.get_hold(hold.org_id)
            assert (held is not None) == (hold.org_id in calls.succeeded)
        free(disk)
        for number, batch in enumerate(batches):
            if f"batch {number}" in calls.unavailable:
                await cancel(batch)
        for hold in holds:
            assert await store.hold_org(hold) == hold


async def test_a_server_that_its_full_disk_has_ended_is_unavailable_until_it_is_back(
    server: Server, disk: Path
) -> None:
    """PostgreSQL crashes when it cannot write WAL.

    It recovers when disk space is available, or it exits and the test restarts it.
    """
    async with open_pool(server.url, acquire_timeout_seconds=1.0) as pool:
        await pool.wait()
        store, calls = PostgresStore(pool, machine_clock), Calls()
        at, task = await with_task(store)
        fill(disk)
        with (
            psycopg.connect(server.url, autocommit=True) as connection,
            pytest.raises(psycopg.Error),
        ):
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CREATE TABLE needs_a_new_segment ()")

        async def all_have_failed() -> bool:
            await calls.make("submit", lambda: with_task(store))
            await calls.make(
                "cancel", lambda: store.record_cancellation(permission(), at.id, task.id, intent())
            )
            await calls.make("read", lambda: store.get_workspace(at.id))
            return {"submit", "cancel", "read"} == set(calls.unavailable)

        await eventually_async(all_have_failed)
        free(disk)

        async def is_back() -> bool:
            if server.process.poll() is not None:
                await asyncio.to_thread(server.start)
            with suppress(UnavailableError):
                return await store.get_task(at.id, task.id) is not None
            return False

        await eventually_async(is_back, 60)
        found = await store.record_cancellation(permission(), at.id, task.id, intent())
        assert found.recorded == ("cancel" not in calls.succeeded)
        await with_task(store)


async def test_a_file_that_may_not_grow_is_unavailable(server: Server) -> None:
    """PostgreSQL reports this error, like a quota error, as an internal error (SQLSTATE XX000)."""
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, unlimited[1]))
    try:
        async with open_pool(server.url) as pool:
            with pytest.raises(UnavailableError) as raised:
                async with connected(pool) as connection:
                    await connection.execute(
                        "CREATE TABLE large AS "
                        "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
                    )
            assert isinstance(raised.value.__cause__, psycopg.errors.InternalError_)
            await with_task(PostgresStore(pool, machine_clock))
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
