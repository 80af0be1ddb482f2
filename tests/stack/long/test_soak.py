"""Mixed calls leave no open file and no process.

`make leaks` makes more calls and also checks the memory.
"""

import asyncio

from tests.faults.long.soak.calls import Mix
from tests.faults.long.soak.holdings import grown_files, holdings
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

WARM_UP, CALLS = 100, 300


def test_mixed_calls_leave_no_open_file_behind(stack: Stack) -> None:
    mix = Mix(stack, [Workspace(stack).id for _ in range(2)], seed=1)
    asyncio.run(mix.run(WARM_UP))
    before = holdings(stack)
    asyncio.run(mix.run(CALLS))
    # The edge closes a connection with a delay after its client disconnects.
    eventually(lambda: not list(grown_files(before, holdings(stack))))
    assert mix.tally.problems == []
