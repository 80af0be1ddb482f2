"""Trees of tasks on PostgreSQL: races of submissions with a cancellation, and the largest tree."""

import asyncio
from collections import Counter

import pytest

from evershell.core.errors import Failure
from evershell.core.ports import Store
from evershell.core.task import Task
from evershell.core.task_tree import MAX_OPEN_DESCENDANTS
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.contracts.test_store_trees import cancel, cancelled, chain
from tests.support.store.examples import workspace
from tests.support.store.trees import end, submit, submit_to

# How many rounds each part of the parametrized test runs.
ROUNDS = 500
CHILDREN = 3
# How many tasks of the largest tree are submitted at once.
_AT_ONCE = 10


@pytest.mark.parametrize("part", range(2))
async def test_no_child_is_left_behind(database_url: str, part: int) -> None:
    """In each round, children of two tasks are submitted while the tree is cancelled."""
    async with open_pool(database_url, min_size=CHILDREN + 1) as pool:
        store = PostgresStore(pool, machine_clock)
        tree = await chain(store, 2)
        idle = [workspace() for _ in range(CHILDREN)]
        for each in idle:
            await store.create_workspace(each)
        ids = [each.id for each in idle]
        accepted: Counter[int] = Counter()
        for number in range(ROUNDS):
            children = await _round(store, tree, ids, 2 * number + part)
            accepted[len(children)] += 1
            assert all(await cancelled(store, *tree, *children)), number
            for task in (*children, *tree):
                await end(store, task)
            root = await submit_to(store, tree[0].workspace_id)
            tree = [root, await submit_to(store, tree[1].workspace_id, root)]
        # The calls did race: different rounds accepted different numbers of children.
        assert len(accepted) > 1, accepted


async def test_the_largest_tree_is_cancelled_in_one_call(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, *descendants = await tree_of(store, MAX_OPEN_DESCENDANTS + 1, levels=10)
        with pytest.raises(Failure) as raised:
            await submit(store, root)
        assert raised.value.slug == "tree_limit_reached"
        recorded = await cancel(store, root)
        assert (recorded.outcome, recorded.descendants_cancelled) == (
            "accepted",
            MAX_OPEN_DESCENDANTS,
        )
        assert all(await cancelled(store, *descendants))
        assert max(len(each.ancestor_ids) for each in descendants) == 9


async def tree_of(store: Store, count: int, levels: int) -> list[Task]:
    """Submits a root and its descendants, about the same number on each level below the root."""
    tree = above = [await submit(store)]
    # On a busy machine, the pool refuses callers that wait too long for a connection.
    turns = asyncio.Semaphore(_AT_ONCE)

    async def submitted(parent: Task) -> Task:
        async with turns:
            return await submit(store, parent)

    width = (count - 1) // (levels - 1)
    for level in range(1, levels):
        is_last = level == levels - 1
        places = range(count - len(tree) if is_last else width)
        submissions = [submitted(above[at % len(above)]) for at in places]
        above = await asyncio.gather(*submissions)
        tree = [*tree, *above]
    return tree


async def _round(store: Store, tree: list[Task], ids: list[str], number: int) -> list[Task]:
    """Submits children while it cancels the tree. Returns the children that were accepted."""
    start = asyncio.Barrier(CHILDREN + 1)

    async def submit_child(at: int) -> Task | None:
        await start.wait()
        try:
            return await submit_to(store, ids[at], tree[(number + at) % 2])
        except Failure as failure:
            assert failure.slug == "parent_not_running"
            return None

    async def cancel_tree() -> None:
        await start.wait()
        await cancel(store, tree[0])

    calls = [submit_child(at) for at in range(CHILDREN)]
    # The last call to reach the barrier continues first, and the others in order. So the index of
    # the cancellation in `calls` decides how many submissions begin before it.
    calls.insert(number % (CHILDREN + 1), cancel_tree())
    return [child for child in await asyncio.gather(*calls) if child is not None]
