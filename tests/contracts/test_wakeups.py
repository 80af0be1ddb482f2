"""The contract of Wakeups: in memory, and on PostgreSQL within and between two processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from evershell.core.ports import Wakeup, Wakeups
from evershell.store import watched_workspaces
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from evershell.store.wakeups import PostgresWakeups
from tests.support.fakes import FakeWakeups
from tests.support.store.examples import workspace
from tests.support.waiting import settle

# Longer than a test takes.
LONG_SECONDS = 60.0
LIMIT_SECONDS = 10.0


@dataclass
class WakeupsCase:
    """An implementation of Wakeups, and functions that act on it."""

    wakeups: Wakeups
    # Announces a commit of the workspace.
    commit: Callable[[str], None]
    drain: Callable[[], None]


def _fake() -> WakeupsCase:
    wakeups = FakeWakeups()
    return WakeupsCase(wakeups, wakeups.announce, wakeups.drain)


async def _postgres(
    database_url: str, resources: AsyncExitStack, *, from_another_process: bool
) -> WakeupsCase:
    pool = await resources.enter_async_context(open_pool(database_url))
    # A poll would hide a lost notification.
    wakeups, other = [
        await resources.enter_async_context(
            PostgresWakeups(pool, database_url, machine_clock, poll_seconds=LONG_SECONDS)
        )
        for _ in range(2)
    ]
    await wakeups.listening()
    await other.listening()
    announcing = other if from_another_process else wakeups

    def commit(workspace_id: str) -> None:
        announcing.announce(workspace_id, watched=from_another_process, reconcile=False)

    for workspace_id in ("ws_1", "ws_2", "ws_3"):
        await PostgresStore(pool, machine_clock).create_workspace(
            replace(workspace(), id=workspace_id)
        )
    return WakeupsCase(wakeups, commit, wakeups.drain)


@pytest.fixture(params=["fake", "postgres", "postgres from another process"])
def wakeups_url(request: pytest.FixtureRequest) -> tuple[str | None, bool]:
    """The database, None for the fake; and whether another process commits."""
    if request.param == "fake":
        return None, False
    return request.getfixturevalue("database_url"), request.param != "postgres"


@pytest.fixture
async def case(
    wakeups_url: tuple[str | None, bool], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[WakeupsCase]:
    """Each implementation in turn."""
    # A mark that is set later than this wakes its subscriber once more.
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", LIMIT_SECONDS)
    url, from_another_process = wakeups_url
    async with AsyncExitStack() as resources, asyncio.timeout(3 * LIMIT_SECONDS):
        if url is None:
            yield _fake()
        else:
            yield await _postgres(url, resources, from_another_process=from_another_process)


async def woken(wakeup: Wakeup) -> bool:
    """Waits until the subscription is woken, and returns what the wait returned."""
    return await asyncio.wait_for(wakeup.wait(LONG_SECONDS), LIMIT_SECONDS)


async def test_a_commit_ends_the_wait(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        waiting = asyncio.create_task(woken(wakeup))
        await settle()
        assert not waiting.done()
        case.commit("ws_1")
        assert await waiting is True


async def test_a_commit_between_subscribing_and_waiting_ends_the_wait(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        case.commit("ws_1")
        await settle()
        assert await woken(wakeup) is True


async def test_a_commit_between_two_waits_ends_the_second(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        for _ in range(3):
            case.commit("ws_1")
            assert await woken(wakeup) is True


async def test_a_wait_consumes_the_commits_before_it(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        case.commit("ws_1")
        assert await woken(wakeup)
        again = asyncio.create_task(wakeup.wait(LONG_SECONDS))
        await settle()
        assert not again.done()
        again.cancel()


async def test_none_of_many_commits_is_lost(case: WakeupsCase) -> None:
    """One wait may return for several commits, but a wait always returns after the last one."""
    commits, total = 0, 200
    async with case.wakeups.subscribe("ws_1") as wakeup:

        async def commit() -> None:
            nonlocal commits
            for _ in range(total):
                commits += 1
                case.commit("ws_1")
                await asyncio.sleep(0)

        committing = asyncio.create_task(commit())
        seen = 0
        while seen < total:
            assert await woken(wakeup) is True
            seen = commits
        await committing


async def test_a_commit_wakes_the_subscribers_of_its_workspace_only(case: WakeupsCase) -> None:
    async with (
        case.wakeups.subscribe("ws_1") as one,
        case.wakeups.subscribe("ws_1") as another,
        case.wakeups.subscribe("ws_2") as elsewhere,
    ):
        waiting = asyncio.create_task(elsewhere.wait(LONG_SECONDS))
        await settle()
        case.commit("ws_1")
        assert await woken(one) and await woken(another)
        await settle()
        assert not waiting.done()
        case.commit("ws_2")
        assert await asyncio.wait_for(waiting, LIMIT_SECONDS) is True


async def test_subscriptions_of_a_workspace_that_begin_together_are_all_woken(
    case: WakeupsCase,
) -> None:
    async with AsyncExitStack() as subscriptions:
        wakeups = await asyncio.gather(
            *(subscriptions.enter_async_context(case.wakeups.subscribe("ws_1")) for _ in range(20))
        )
        case.commit("ws_1")
        assert all(await asyncio.gather(*map(woken, wakeups)))


async def test_a_subscription_after_the_last_one_has_ended_is_woken(case: WakeupsCase) -> None:
    for _ in range(3):
        async with case.wakeups.subscribe("ws_1") as wakeup:
            case.commit("ws_1")
            assert await woken(wakeup) is True


async def test_a_commit_before_the_subscription_does_not_end_its_wait(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as earlier:
        case.commit("ws_1")
        assert await woken(earlier)
        async with case.wakeups.subscribe("ws_1") as later:
            waiting = asyncio.create_task(later.wait(LONG_SECONDS))
            await settle()
            assert not waiting.done()
            waiting.cancel()


async def test_the_timeout_ends_a_wait(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        assert await asyncio.wait_for(wakeup.wait(0.01), LIMIT_SECONDS) is True
        assert await asyncio.wait_for(wakeup.wait(0), LIMIT_SECONDS) is True
        case.commit("ws_1")
        assert await woken(wakeup) is True


async def test_a_cancelled_wait_consumes_no_commit(case: WakeupsCase) -> None:
    async with case.wakeups.subscribe("ws_1") as wakeup:
        waiting = asyncio.create_task(wakeup.wait(LONG_SECONDS))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        case.commit("ws_1")
        assert await woken(wakeup) is True


async def test_draining_ends_current_and_later_waits(case: WakeupsCase) -> None:
    async with (
        case.wakeups.subscribe("ws_1") as waiting_one,
        case.wakeups.subscribe("ws_2") as idle_one,
    ):
        waiting = asyncio.create_task(woken(waiting_one))
        await settle()
        case.drain()
        assert await waiting is False
        assert await woken(waiting_one) is False
        assert await woken(idle_one) is False
        async with case.wakeups.subscribe("ws_3") as later:
            assert await woken(later) is False
            case.commit("ws_3")
            assert await woken(later) is False


@pytest.mark.parametrize("error", [None, RuntimeError, asyncio.CancelledError])
async def test_leaving_the_context_unsubscribes(
    case: WakeupsCase, error: type[BaseException] | None
) -> None:
    async with case.wakeups.subscribe("ws_1") as remaining:
        try:
            async with case.wakeups.subscribe("ws_1") as left:
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
