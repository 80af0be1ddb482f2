"""There is only one leader, and a standby replaces a leader that stops or fails."""

import asyncio
import signal
import subprocess
import sys

import pytest
from psycopg import AsyncConnection

from evershell.store.leadership import Leadership, Term

LIMIT_SECONDS = 30


class Candidate:
    """Waits for leadership and keeps it until `stop` is set."""

    def __init__(self, database_url: str) -> None:
        self.leads = asyncio.Event()
        self.stop = asyncio.Event()
        self.term: Term | None = None
        self.task = asyncio.create_task(self._run(Leadership(database_url)))

    async def _run(self, leadership: Leadership) -> None:
        async with leadership.acquired() as self.term:
            self.leads.set()
            await self.stop.wait()


async def test_only_one_candidate_leads_at_a_time(database_url: str) -> None:
    candidates = [Candidate(database_url) for _ in range(5)]
    for _ in candidates:
        async with asyncio.timeout(LIMIT_SECONDS):
            await asyncio.wait(
                [
                    asyncio.create_task(each.leads.wait())
                    for each in candidates
                    if not each.stop.is_set()
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        leaders = [each for each in candidates if each.leads.is_set() and not each.stop.is_set()]
        assert len(leaders) == 1
        leaders[0].stop.set()
        await leaders[0].task


async def test_a_leader_notices_that_its_database_session_has_ended(database_url: str) -> None:
    first = Candidate(database_url)
    async with asyncio.timeout(LIMIT_SECONDS):
        await first.leads.wait()
    second = Candidate(database_url)
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks "
            "WHERE locktype = 'advisory' AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    assert first.term is not None
    async with asyncio.timeout(LIMIT_SECONDS):
        await first.term.lost.wait()
        await second.leads.wait()
    for each in (first, second):
        each.stop.set()
        await each.task


# This program prints a line when it becomes the leader. When it learns that it has lost leadership,
# it prints whether it still considered itself the leader after it was resumed, and exits.
LEADER = """
import asyncio, signal, sys
from evershell.store.leadership import Leadership

async def lead():
    async with Leadership(sys.argv[1]).acquired() as term:
        resumed = []
        signal.signal(signal.SIGCONT, lambda *_: resumed.append(term.is_current()))
        print("leads", flush=True)
        await term.lost.wait()
        print(resumed, flush=True)

asyncio.run(lead())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_standby_takes_over_from_a_leader_that_was_killed_or_frozen(
    database_url: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", LEADER, database_url]
    # A blocking start is acceptable, because the test waits for the first line.
    leader = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert leader.stdout is not None
    try:
        assert leader.stdout.readline() == b"leads\n"
        standby = Candidate(database_url)
        leader.send_signal(number)
        async with asyncio.timeout(LIMIT_SECONDS):
            await standby.leads.wait()
        if number is signal.SIGSTOP:
            # The resumed leader knows at once that it no longer leads.
            leader.send_signal(signal.SIGCONT)
            assert leader.wait(LIMIT_SECONDS) == 0
            assert leader.stdout.read().splitlines()[-1] == b"[False]"
        standby.stop.set()
        await standby.task
    finally:
        leader.kill()
        leader.wait()
        leader.stdout.close()
