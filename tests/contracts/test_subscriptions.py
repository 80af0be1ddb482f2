"""The contract of Subscriptions: in memory, and on PostgreSQL within and between two processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from evershell.core.ports import Subscription, Subscriptions
from evershell.store import watched_workspaces
from evershell.store.memory.subscriptions import MemorySubscriptions
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import workspace
from tests.support.waiting import settle

# Longer than a test takes.
LONG_SECONDS = 60.0
LIMIT_SECONDS = 10.0


@dataclass
class Case:
    """An implementation of Subscriptions, and functions that act on it."""

    subscriptions: Subscriptions
    # Commits a change of the workspace.
    commit: Callable[[str], None]
    drain: Callable[[], None]


def _memory() -> Case:
    subscriptions = MemorySubscriptions()
    return Case(subscriptions, subscriptions.publish, subscriptions.drain)


async def _postgres(
    database_url: str, resources: AsyncExitStack, *, from_another_process: bool
) -> Case:
    pool = await resources.enter_async_context(open_pool(database_url))
    # The poll interval is longer than a test, because a poll would hide a lost notification.
    subscriptions, other = [
        await resources.enter_async_context(
            WorkspaceSubscriptions(pool, database_url, machine_clock, poll_seconds=LONG_SECONDS)
        )
        for _ in range(2)
    ]
    await subscriptions.listening()
    await other.listening()
    publishing = other if from_another_process else subscriptions

    def commit(workspace_id: str) -> None:
        publishing.publish(workspace_id, watched=from_another_process, reconcile=False)

    for workspace_id in ("ws_1", "ws_2", "ws_3"):
        await PostgresStore(pool, machine_clock).create_workspace(
            replace(workspace(), id=workspace_id)
        )
    return Case(subscriptions, commit, subscriptions.drain)


@pytest.fixture(params=["memory", "postgres", "postgres from another process"])
def subscriptions_url(request: pytest.FixtureRequest) -> tuple[str | None, bool]:
    """The URL of the database (None for memory), and whether another process commits."""
    if request.param == "memory":
        return None, False
    return request.getfixturevalue("database_url"), request.param != "postgres"


@pytest.fixture
async def case(
    subscriptions_url: tuple[str | None, bool], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Case]:
    """Each implementation of Subscriptions in turn."""
    # Prevents wakes that the tests do not expect: if it takes too long to mark a workspace as
    # watched, its subscriber is woken later.
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", LIMIT_SECONDS)
    url, from_another_process = subscriptions_url
    async with AsyncExitStack() as resources, asyncio.timeout(3 * LIMIT_SECONDS):
        if url is None:
            yield _memory()
        else:
            yield await _postgres(url, resources, from_another_process=from_another_process)


async def woken(subscription: Subscription) -> bool:
    """Waits until the subscription is woken, and returns what the wait returned."""
    return await asyncio.wait_for(subscription.wait(LONG_SECONDS), LIMIT_SECONDS)


async def test_a_commit_ends_the_wait(case: Case) -> None:
    async with case.subscriptions.subscribe("ws_1") as subscription:
        waiting = asyncio.create_task(woken(subscription))
        await settle()
        assert not waiting.done()
        case.commit("ws_1")
        assert await waiting is True


async def test_a_commit_between_subscribing_and_waiting_ends_the_wait(case: Case) -> None:
    async with case.subscriptions.subscribe("ws_1") as subscription:
        case.commit("ws_1")
        await settle()
        assert await woken(subscription) is True


async def test_a_wait_consumes_the_commits_before_it(case: Case) -> None:
    async with case.subscriptions.subscribe("ws_1") as subscription:
        case.commit("ws_1")
        assert await woken(subscription)
        again = asyncio.create_task(subscription.wait(LONG_SECONDS))
        await settle()
        assert not again.done()
        again.cancel()


async def test_none_of_many_commits_is_lost(case: Case) -> None:
    """One wait may return for several commits, but a wait always returns after the last one."""
    commits, total = 0, 200
    async with case.subscriptions.subscribe("ws_1") as subscription:

        async def commit() -> None:
            nonlocal commits
            for _ in range(total):
                commits += 1
                case.commit("ws_1")
                await asyncio.sleep(0)

        committing = asyncio.create_task(commit())
        seen = 0
        while seen < total:
            assert await woken(subscription) is True
            seen = commits
        await committing


async def test_a_commit_wakes_the_subscribers_of_its_workspace_only(case: Case) -> None:
    async with (
        case.subscriptions.subscribe("ws_1") as one,
        case.subscriptions.subscribe("ws_1") as another,
        case.subscriptions.subscribe("ws_2") as elsewhere,
    ):
        waiting = asyncio.create_task(elsewhere.wait(LONG_SECONDS))
        await settle()
        case.commit("ws_1")
        assert await woken(one) and await woken(another)
        await settle()
        assert not waiting.done()
        case.commit("ws_2")
        assert await asyncio.wait_for(waiting, LIMIT_SECONDS) is True


async def test_the_timeout_ends_a_wait(case: Case) -> None:
    async with case.subscriptions.subscribe("ws_1") as subscription:
        assert await asyncio.wait_for(subscription.wait(0.01), LIMIT_SECONDS) is True
        assert await asyncio.wait_for(subscription.wait(0), LIMIT_SECONDS) is True
        case.commit("ws_1")
        assert await woken(subscription) is True


async def test_a_cancelled_wait_consumes_no_commit(case: Case) -> None:
    async with case.subscriptions.subscribe("ws_1") as subscription:
        waiting = asyncio.create_task(subscription.wait(LONG_SECONDS))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        case.commit("ws_1")
        assert await woken(subscription) is True


async def test_draining_ends_current_and_later_waits(case: Case) -> None:
    async with (
        case.subscriptions.subscribe("ws_1") as waiting_one,
        case.subscriptions.subscribe("ws_2") as idle_one,
    ):
        waiting = asyncio.create_task(woken(waiting_one))
        await settle()
        case.drain()
        assert await waiting is False
        assert await woken(waiting_one) is False
        assert await woken(idle_one) is False
        async with case.subscriptions.subscribe("ws_3") as later:
            assert await woken(later) is False
            case.commit("ws_3")
            assert await woken(later) is False


@pytest.mark.parametrize("error", [None, RuntimeError, asyncio.CancelledError])
async def test_leaving_the_context_unsubscribes(
    case: Case, error: type[BaseException] | None
) -> None:
    async with case.subscriptions.subscribe("ws_1") as remaining:
        try:
            async with case.subscriptions.subscribe("ws_1") as left:
                if error is not None:
                    raise error
        except (RuntimeError, asyncio.CancelledError):
            pass
        waiting = asyncio.create_task(left.wait(LONG_SECONDS))
        await settle()
        case.commit("ws_1")
        assert await woken(remaining) is True
        await settle()
        assert not waiting.done()
        waiting.cancel()
