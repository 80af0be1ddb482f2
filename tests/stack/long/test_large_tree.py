"""Cancels a tree of tasks, 10 levels deep, in one call. Each task has a real agent.

TREE_TASKS sets the number of tasks; 1,000 tasks need 8 GB. The test prints the times.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from evershell.client import AsyncClient
from tests.support.stack import Stack

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

T = TypeVar("T")
TASKS = int(os.environ.get("TREE_TASKS", "60"))
LEVELS = 10
# The number of calls that are made at once.
AT_ONCE = 16
_TIMES = """
SELECT extract(epoch FROM max(cancel_requested_at) - min(cancel_requested_at))::float,
       extract(epoch FROM max(completed_at) - min(cancel_requested_at))::float,
       count(*) FILTER (WHERE status = 'cancelled' AND forced)
FROM tasks WHERE id = %(id)s OR ancestor_ids[1] = %(id)s
"""


async def each(numbers: Sequence[T], act: Callable[[T], Awaitable[None]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: T) -> None:
        async with slots:
            await act(number)

    await asyncio.gather(*map(one, numbers))


async def tree_of(client: AsyncClient) -> list[tuple[str, str]]:
    """Creates the tree: a chain with LEVELS tasks, and further children of all but its last task.

    Returns the workspace id and the task id of each node, the root first.
    """
    workspace_ids: dict[int, str] = {}
    tasks: dict[int, str] = {}

    async def create(number: int) -> None:
        workspace_ids[number] = (await client.create_workspace()).id

    async def start(number: int) -> None:
        while (await client.get_workspace(workspace_ids[number])).status != "idle":
            await asyncio.sleep(0.1)

    async def submit(number: int) -> None:
        parent = number - 1 if number < LEVELS else number % (LEVELS - 1)
        submitted = await client.submit_task(
            workspace_ids[number],
            "sleep 3600",
            parent_task_id=tasks[parent] if number else None,
        )
        tasks[number] = submitted.task_id

    await each(range(TASKS), create)
    await each(range(TASKS), start)
    for number in range(LEVELS):
        await submit(number)
    await each(range(LEVELS, TASKS), submit)
    return [(workspace_ids[number], tasks[number]) for number in range(TASKS)]


def test_a_large_tree_of_real_agents_is_cancelled_in_one_call(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "state", LEASE_SECONDS="120")

    async def cancelled() -> None:
        async with AsyncClient(
            f"http://{stack.ready['grpc_addr']}",
            stack.tokens["full_access"],
            timeout=60,
            max_retries=20,
        ) as client:
            began = time.monotonic()
            (workspace_id, root_id), *_ = await tree_of(client)
            built = time.monotonic()
            result = await client.cancel(
                workspace_id, task_id=root_id, include_descendants=True, force_after=0
            )
            recorded = time.monotonic()
            assert result.descendants_cancelled == TASKS - 1
            with stack.database() as connection:
                found: tuple[float, float, int] = (0.0, 0.0, 0)
                while found[2] != TASKS:
                    assert time.monotonic() < recorded + 120, found
                    await asyncio.sleep(0.2)
                    row = connection.execute(_TIMES, {"id": root_id}).fetchone()
                    assert row is not None
                    found = row
            print(
                f"\n{TASKS} agents: built in {built - began:.1f} s, the call "
                f"{recorded - built:.3f} s, intents within {found[0]:.3f} s, "
                f"the last end after {found[1]:.3f} s"
            )

    with stack.started():
        asyncio.run(cancelled())
