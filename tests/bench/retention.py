"""CancelTask by 64 callers, while old tasks are removed and while they are not.

    python -m tests.bench.retention FOLDER ROUNDS

Builds a database with 1,000,000 tasks that have ended and 5,000,000 events in the folder, unless it
is there. In each round, the callers cancel tasks while the removal is stopped, and while it runs.
With 0 rounds, they cancel tasks until everything is removed. Prints a JSON object for each window.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from evershell.fleet.periodic import repeat
from evershell.fleet.retention import Retention
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from tests.bench import arming, processes, size, windows
from tests.bench.figures import Figures
from tests.bench.servers.agent import AGENTS, addresses
from tests.bench.side import Side
from tests.support.waiting import eventually

_WORKSPACES = 50_000
_CALLERS, _SECONDS = 64, 3.0
_GO_ON, _PAUSE = signal.SIGUSR1, signal.SIGUSR2
# How long the removal takes to check the workspaces of earlier windows.
_START_SECONDS = 60.0
_COUNT = "SELECT count(*) FROM tasks WHERE workspace_id LIKE 'ws\\_l\\_%'"


def main(folder: Path, rounds: int) -> None:
    """Runs the windows."""
    processes.exit_on_sigterm()
    side, built = Side("retention", state_dir=folder / "state"), folder / "built"
    with ExitStack() as stack:
        stack.callback(side.stop)
        side.start()
        side.take_leadership()
        # Otherwise the next start would treat their agents as lost.
        stack.callback(lambda: arming.remove(side.database))
        if not built.exists():
            size.fill(side.database, _WORKSPACES)
            built.write_text(datetime.now(UTC).isoformat())
        port, log = processes.free_port(), folder / "log"
        agents = processes.running("tests.bench.servers.agent", port, str(AGENTS), log=log)
        stack.enter_context(agents)
        command = [sys.executable, "-m", "tests.bench.retention", "remove"]
        arguments = [side.stack.ready["database_url"], built.read_text()]
        removal = stack.enter_context(processes.started([*command, *arguments], log))
        at_first = _left(side.database)
        eventually(lambda: _left(side.database) < at_first, _START_SECONDS)
        for number in range(rounds) if rounds else iter(int, 1):
            for removes in (False, True) if rounds else (True,):
                figures = _window(side, removal, addresses(port, AGENTS), removes=removes)
                print(json.dumps({"round": number, "removes": removes, **figures}), flush=True)
            if not rounds and not figures["left"]:
                break


def _window(
    side: Side, removal: "subprocess.Popen[bytes]", agents: Sequence[str], *, removes: bool
) -> Figures:
    connection, before = side.connect("CancelTask"), _left(side.database)
    removal.send_signal(_GO_ON if removes else _PAUSE)
    figures = windows.cancelled(side, agents, [connection], _CALLERS, _SECONDS, side.worker_pids)
    removal.send_signal(_PAUSE)
    left = _left(side.database)
    return {**figures, "removed": before - left, "left": left}


def _left(database: psycopg.Connection[Any]) -> int:
    row = database.execute(_COUNT).fetchone()
    assert row is not None
    return int(row[0])


async def _remove(database_url: str, before: datetime) -> None:
    """Removes the tasks that ended before this time, as the leading controller does."""
    may_go_on, sleep = asyncio.Event(), asyncio.sleep
    may_go_on.set()
    asyncio.get_running_loop().add_signal_handler(_GO_ON, may_go_on.set)
    asyncio.get_running_loop().add_signal_handler(_PAUSE, may_go_on.clear)

    async def pause(seconds: float) -> None:
        await sleep(seconds)
        await may_go_on.wait()

    # Lets the removal pause between two statements.
    asyncio.sleep = pause  # type: ignore[assignment]
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, lambda: before)
        await repeat("retention", Retention(store, lambda: before, timedelta()).sweep, 600)


if __name__ == "__main__":
    if sys.argv[1] == "remove":
        asyncio.run(_remove(sys.argv[2], datetime.fromisoformat(sys.argv[3])))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
