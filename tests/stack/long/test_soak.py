"""Mixed calls leave no file open and no process behind, and all answers are right.

`make leaks` makes more calls and also checks the memory.
"""

import asyncio
from contextlib import closing
from pathlib import Path

from evershell.histories.judge import verdict
from evershell.histories.recorder import Recorder
from tests.faults.long.soak.calls import Mix
from tests.faults.long.soak.holdings import grown_files, holdings
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

WARM_UP, CALLS = 100, 300


def test_mixed_calls_leave_no_open_file_behind(stack: Stack, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    with closing(Recorder(history)) as recorder:
        mix = Mix(stack, [Workspace(stack).id for _ in range(2)], 1, recorder)
        asyncio.run(mix.run(WARM_UP))
        before = holdings(stack)
        asyncio.run(mix.run(CALLS))
    # The edge closes a connection some time after its client has disconnected.
    eventually(lambda: not list(grown_files(before, holdings(stack))))
    assert mix.tally.problems + verdict(history)[1] == []
