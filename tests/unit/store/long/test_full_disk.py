"""A database with a full disk. The test is skipped if a small disk cannot be mounted."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from evershell.core.change import Hold
from evershell.core.errors import UnavailableError
from evershell.core.event import EventType
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.stack import postgres
from evershell.store.migrate import migrate
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.small_disk import fill, free, small_disk
from tests.support.store.examples import NOW, USER, intent, permission, with_task

# PostgreSQL's own files take 42 MB, and each WAL segment takes 16 MB.
_DISK_BYTES = 96 * 1024 * 1024
# The free space that the test leaves: enough for some of the batches.
_SPARE_BYTES = 64 * 1024


@pytest.fixture
async def server_url(tmp_path: Path) -> AsyncIterator[str]:
    """A PostgreSQL server with its data directory on the small disk."""
    with small_disk(tmp_path, _DISK_BYTES):
        places = postgres.places(tmp_path)
        postgres.initialise(places.data_dir)
        # No autovacuum, which would use up the space that the test leaves.
        settings = ("-c", "fsync=off", "-c", "autovacuum=off")
        command = [*postgres.command(places.data_dir, places.socket_dir), *settings]
        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
        try:
            url = postgres.database_url(places.socket_dir)
            await postgres.wait_ready(url, 20)
            await asyncio.to_thread(migrate, url)
            yield url
        finally:
            process.send_signal(postgres.STOP_SIGNAL)
            await asyncio.wait_for(process.wait(), 20)


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


async def test_a_batch_and_a_hold_on_a_full_disk_are_complete_or_absent(
    server_url: str, tmp_path: Path
) -> None:
    async with open_pool(server_url) as pool:
        store, calls = PostgresStore(pool, machine_clock), Calls()
        asked = intent("because " * 9)
        batches = [[await with_task(store) for _ in range(6)] for _ in range(30)]
        holds = [
            Hold(org_id=f"org_{number}", held_by=USER, held_since=NOW, reason="because " * 60)
            for number in range(len(batches))
        ]
        fill(tmp_path, _SPARE_BYTES)

        async def cancel(batch: list[tuple[Workspace, Task]]) -> None:
            ids = [task.id for _, task in batch]
            assert await store.cancel_tasks(permission(), ids, asked) == dict.fromkeys(ids, True)

        # The first calls have enough space. A later batch has space for only some of its rows.
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
        free(tmp_path)
        for number, batch in enumerate(batches):
            if f"batch {number}" in calls.unavailable:
                await cancel(batch)
        for hold in holds:
            assert await store.hold_org(hold) == hold
