"""The log of a program that has the URL of a pooler but needs a session.

tests/unit/store/long/test_pooler.py runs a real pooler.
"""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from evershell.store import leadership, notifications
from evershell.store.connections import PoolerError
from evershell.store.leadership import Leadership
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.pool import Pool
from evershell.store.service_clock import machine_clock

LIMIT_SECONDS = 10


class Pooler:
    """Replaces connect_to_session, and counts the attempts to connect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, retry_seconds: str) -> None:
        self._attempts = asyncio.Semaphore(0)
        monkeypatch.setattr(module, "connect_to_session", self._connect)
        monkeypatch.setattr(module, retry_seconds, 0.001)

    async def _connect(self, conninfo: str) -> None:
        self._attempts.release()
        raise PoolerError

    async def attempts(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            for _ in range(count):
                await self._attempts.acquire()


async def test_a_listener_says_it_once(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler = Pooler(monkeypatch, notifications, "_RETRY_SECONDS")
    with capture_logs() as logs:
        async with WorkspaceSubscriptions(pool, database_url, machine_clock):
            await pooler.attempts(3)
    assert [(each["event"], each["error"]) for each in logs] == [
        ("notifications_listener_lost", str(PoolerError()))
    ]


async def test_a_candidate_for_leadership_says_it_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler = Pooler(monkeypatch, leadership, "_POLL_SECONDS")

    async def lead() -> None:
        async with Leadership(database_url).acquired():
            pass

    with capture_logs() as logs:
        leading = asyncio.create_task(lead())
        await pooler.attempts(3)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
    assert [(each["event"], each["error"]) for each in logs] == [
        ("leadership_impossible", str(PoolerError()))
    ]
