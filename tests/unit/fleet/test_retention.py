"""The leader removes old tasks a few at a time, with pauses in which others use the database."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from evershell.core.errors import UnavailableError
from evershell.core.workspace import Workspace
from evershell.fleet import periodic, retention
from evershell.fleet.periodic import repeat
from evershell.fleet.retention import Retention
from tests.support.waiting import LIMIT_SECONDS, eventually_async
from tests.support.world import World

KEPT = timedelta(days=30)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in which a sweep uses small batches and pages."""
    monkeypatch.setattr(retention, "BATCH_EVENTS", 4)
    monkeypatch.setattr(retention, "_PAGE_SIZE", 2)
    yield World()


async def run_tasks(world: World, count: int) -> Workspace:
    at = await world.add()
    for _ in range(count):
        task = await world.run(at)
        await world.end(at.id, task.id)
    return at


async def test_a_sweep_looks_at_every_workspace(world: World) -> None:
    old = [await run_tasks(world, 3) for _ in range(3)]
    world.clock.advance(KEPT.total_seconds() + 1)
    new = await run_tasks(world, 1)
    counts: list[int] = []
    await Retention(world.store, world.clock, KEPT, counts.append).sweep()
    assert [await world.events(each.id) for each in old] == [[], [], []]
    assert len(await world.events(new.id)) == 3
    assert sum(counts) == 9


async def test_a_controller_that_leads_no_longer_removes_nothing(world: World) -> None:
    old = await run_tasks(world, 1)
    world.clock.advance(KEPT.total_seconds() + 1)
    await Retention(world.store, world.clock, KEPT, leads=lambda: False).sweep()
    assert await world.events(old.id)


async def test_an_outage_of_the_database_does_not_end_the_removal(world: World) -> None:
    old = await run_tasks(world, 1)
    world.clock.advance(KEPT.total_seconds() + 1)
    world.store.unavailable = True
    with pytest.raises(UnavailableError):
        await world.events(old.id)
    running = asyncio.create_task(
        repeat("retention", Retention(world.store, world.clock, KEPT).sweep, 0)
    )
    try:
        await asyncio.sleep(0)
        world.store.unavailable = False

        async def is_removed() -> bool:
            return not await world.events(old.id)

        await eventually_async(is_removed)
    finally:
        running.cancel()


async def test_no_error_ends_a_job() -> None:
    outcomes = iter([UnavailableError("the database is down"), ValueError("a defect")])
    has_gone_on = asyncio.Event()

    async def job() -> None:
        if error := next(outcomes, None):
            raise error
        has_gone_on.set()

    running = asyncio.create_task(repeat("job", job, 0))
    async with asyncio.timeout(LIMIT_SECONDS):
        await has_gone_on.wait()
    running.cancel()


async def test_statements_take_a_share_of_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_tasks(world, 3)
    world.clock.advance(KEPT.total_seconds() + 1)
    times, pauses = iter(range(100)), []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(periodic, "monotonic", lambda: next(times))
    monkeypatch.setattr("asyncio.sleep", note)
    await Retention(world.store, world.clock, KEPT).sweep()
    # There is a pause after each of four statements of 1 s: the list of workspaces, and three
    # batches of up to four events.
    assert pauses == [pytest.approx(9)] * 4
