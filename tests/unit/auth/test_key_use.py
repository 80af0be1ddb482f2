"""The times of the last use of API keys: collected in memory, stored once a minute."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg
import pytest

from evershell.auth import api_keys
from evershell.auth.api_keys import KeyUse
from evershell.core.errors import UnavailableError
from tests.support.waiting import settle


class Stored:
    """Takes the place of the database."""

    def __init__(self) -> None:
        self.calls: list[Mapping[str, datetime]] = []
        self.error: Exception | None = None
        self.called = asyncio.Event()

    async def __call__(self, used_at: Mapping[str, datetime]) -> None:
        self.called.set()
        if self.error is not None:
            raise self.error
        self.calls.append(used_at)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def test_all_keys_are_stored_in_one_call_with_their_last_use() -> None:
    stored = Stored()
    use = KeyUse(stored)
    for key_id, now in (("key_1", 1.0), ("key_2", 2.0), ("key_1", 3.0)):
        use.record(key_id, now)
    await use.store()
    assert stored.calls == [{"key_1": at(3), "key_2": at(2)}]
    await use.store()
    assert len(stored.calls) == 1


async def test_a_failed_call_is_repeated_with_the_newer_times() -> None:
    stored = Stored()
    use = KeyUse(stored)
    use.record("key_1", 1.0)
    use.record("key_2", 1.0)
    stored.error = UnavailableError("the database is unavailable")
    await use.store()
    use.record("key_1", 5.0)
    stored.error = None
    await use.store()
    assert stored.calls == [{"key_1": at(5), "key_2": at(1)}]


async def test_the_times_are_stored_at_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "STORE_INTERVAL_SECONDS", 0.01)
    stored = Stored()
    use = KeyUse(stored)
    running = asyncio.create_task(use.run())
    for now in (1.0, 2.0):
        use.record("key_1", now)
        async with asyncio.timeout(5):
            await stored.called.wait()
        stored.called.clear()
        assert stored.calls[-1] == {"key_1": at(now)}
    running.cancel()


async def test_a_statement_that_the_database_refuses_is_repeated_at_the_next_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example if the role of the service may not update keys yet."""
    monkeypatch.setattr(api_keys, "STORE_INTERVAL_SECONDS", 0.01)
    stored = Stored()
    stored.error = psycopg.errors.InsufficientPrivilege("permission denied for table api_keys")
    use = KeyUse(stored)
    running = asyncio.create_task(use.run())
    use.record("key_1", 1.0)
    async with asyncio.timeout(5):
        await stored.called.wait()
        stored.error = None
        while not stored.calls:
            stored.called.clear()
            await stored.called.wait()
    assert stored.calls == [{"key_1": at(1)}]
    running.cancel()


async def test_the_times_are_stored_at_the_end() -> None:
    stored = Stored()
    use = KeyUse(stored)
    running = asyncio.create_task(use.run())
    await settle()
    use.record("key_1", 2.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stored.calls == [{"key_1": at(2)}]


async def test_the_number_of_collected_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_MAX_KEYS", 2)
    stored = Stored()
    use = KeyUse(stored)
    for key_id in ("key_1", "key_2", "key_3", "key_1"):
        use.record(key_id, 1.0)
    await use.store()
    assert stored.calls == [{"key_1": at(1), "key_2": at(1)}]
