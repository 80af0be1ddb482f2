"""No commit of another process is missed, whether the commit or the subscription is first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from psycopg import AsyncConnection

from evershell.core import task_lifecycle
from evershell.core.event import Event
from evershell.core.task import TaskStarted
from evershell.core.workspace import Workspace
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.pool import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, intent, permission, with_task
from tests.support.store.locks import waiting_sessions
from tests.support.store.published import Published
from tests.support.waiting import settle

LIMIT_SECONDS = 10.0


@dataclass
class Process:
    """A worker: its own connections, store and subscriptions."""

    pool: Pool
    store: PostgresStore
    subscriptions: WorkspaceSubscriptions

    def publishing(self, published: Published) -> "Process":
        """The same process, with a store that publishes to `published`."""
        return replace(self, store=PostgresStore(self.pool, machine_clock, published))


@asynccontextmanager
async def process(database_url: str) -> AsyncIterator[Process]:
    """A process that listens. It would poll only after the end of a test."""
    async with (
        open_pool(database_url) as pool,
        WorkspaceSubscriptions(pool, database_url, machine_clock, poll_seconds=60) as subscriptions,
    ):
        await subscriptions.listening()
        yield Process(
            pool, PostgresStore(pool, machine_clock, subscriptions.publish), subscriptions
        )


@pytest.fixture
async def processes(database_url: str) -> AsyncIterator[tuple[Process, Process]]:
    """The process of a subscriber, and the process that commits."""
    async with AsyncExitStack() as resources, asyncio.timeout(3 * LIMIT_SECONDS):
        yield (
            await resources.enter_async_context(process(database_url)),
            await resources.enter_async_context(process(database_url)),
        )


Commit = Callable[[Process, Workspace, str], Awaitable[object]]


async def cancel(by: Process, busy: Workspace, task_id: str) -> object:
    requested = replace(intent(), requested_at=machine_clock())
    return await by.store.record_cancellation(permission(), busy.id, task_id, requested)


async def start(by: Process, busy: Workspace, task_id: str) -> object:
    return await by.store.transition(
        busy.id,
        lambda locked: task_lifecycle.commit(locked, busy.epoch, task_id, [TaskStarted()], NOW),
    )


async def next_event(by: Process, busy: Workspace, reads: asyncio.Queue[int]) -> Event:
    """Subscribes and reads until there is an event after the task's first, as WatchEvents does.

    Adds the number of events of each read to `reads`.
    """
    async with by.subscriptions.subscribe(busy.id) as subscription, asyncio.timeout(LIMIT_SECONDS):
        while True:
            events = await by.store.list_events(busy.id, busy.last_seq, 10)
            reads.put_nowait(len(events))
            if events:
                return events[0]
            await subscription.wait(60)


@asynccontextmanager
async def next_commit_blocked(database_url: str, busy: Workspace) -> AsyncIterator[None]:
    """Blocks the next transaction that adds an event, after it has locked the workspace.

    The blocking transaction inserts an event with the same `seq`, and rolls back at the end.
    """
    async with (
        await AsyncConnection.connect(database_url) as connection,
        connection.transaction(force_rollback=True),
    ):
        await connection.execute(
            "INSERT INTO events (workspace_id, seq, type, time, payload)"
            " VALUES (%s, %s, 'workspace_stopped', now(), '{}')",
            (busy.id, busy.last_seq + 1),
        )
        yield


@pytest.mark.parametrize("commit", [cancel, start])
async def test_a_transaction_that_locked_the_workspace_before_the_mark(
    processes: tuple[Process, Process], database_url: str, commit: Commit
) -> None:
    """The transaction does not see the mark, so it notifies nobody. The subscriber reads again."""
    subscriber, other = processes
    busy, task = await with_task(other.store)
    reads = asyncio.Queue[int]()
    async with (
        waiting_sessions(database_url) as waiting,
        next_commit_blocked(database_url, busy),
    ):
        committing = asyncio.ensure_future(commit(other, busy, task.id))
        await waiting(1)
        seen = asyncio.create_task(next_event(subscriber, busy, reads))
        # The subscriber reads without a mark, because the transaction takes long.
        assert await reads.get() == 0
        await settle()
    await committing
    assert (await seen).seq == busy.last_seq + 1


@pytest.mark.parametrize("commit", [cancel, start])
async def test_a_transaction_that_waits_for_the_mark_sees_it(
    processes: tuple[Process, Process], database_url: str, commit: Commit
) -> None:
    """The transaction reads the mark under the lock, not as it was before the wait."""
    _, other = processes
    busy, task = await with_task(other.store)
    published = Published()
    async with (
        waiting_sessions(database_url) as waiting,
        await AsyncConnection.connect(database_url) as marking,
    ):
        await marking.execute(
            "UPDATE workspaces SET watched_until = clock_timestamp() + interval '60 s'"
        )
        committing = asyncio.ensure_future(commit(other.publishing(published), busy, task.id))
        await waiting(1)
        await marking.commit()
        await committing
    assert published.watched == [busy.id]


@pytest.mark.parametrize("commit", [cancel, start])
@pytest.mark.parametrize(
    ("mark", "is_watched"),
    [("NULL", False), ("clock_timestamp()", False), ("clock_timestamp() + '5 s'", True)],
)
async def test_a_commit_is_watched_until_its_mark_ends(
    processes: tuple[Process, Process],
    database_url: str,
    mark: str,
    is_watched: bool,
    commit: Commit,
) -> None:
    _, other = processes
    busy, task = await with_task(other.store)
    published = Published()
    async with await AsyncConnection.connect(database_url, autocommit=True) as marking:
        await marking.execute(f"UPDATE workspaces SET watched_until = {mark}")
    await commit(other.publishing(published), busy, task.id)
    assert (published.ids, published.watched) == ([busy.id], [busy.id] if is_watched else [])


async def test_each_cancellation_of_a_group_has_its_own_mark(
    processes: tuple[Process, Process], database_url: str
) -> None:
    _, other = processes
    examples = [await with_task(other.store) for _ in range(20)]
    published, watched = Published(), {busy.id for busy, _ in examples[::3]}
    async with await AsyncConnection.connect(database_url, autocommit=True) as marking:
        await marking.execute(
            "UPDATE workspaces SET watched_until = clock_timestamp() + '60 s' WHERE id = ANY(%s)",
            (list(watched),),
        )
    committing = other.publishing(published)
    await asyncio.gather(*(cancel(committing, busy, task.id) for busy, task in examples))
    assert sorted(published.ids) == sorted(busy.id for busy, _ in examples)
    assert sorted(published.watched) == sorted(watched)


async def test_no_commit_is_missed_when_subscriptions_and_commits_are_concurrent(
    processes: tuple[Process, Process],
) -> None:
    subscriber, other = processes
    examples = [await with_task(other.store) for _ in range(60)]
    seen = await asyncio.gather(
        *(next_event(subscriber, busy, asyncio.Queue()) for busy, _ in examples),
        *(cancel(other, busy, task.id) for busy, task in examples),
    )
    expected = [busy.last_seq + 1 for busy, _ in examples]
    assert [event.seq for event in seen if isinstance(event, Event)] == expected
