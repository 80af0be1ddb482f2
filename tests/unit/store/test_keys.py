"""API keys and organizations in PostgreSQL."""

import asyncio
import hashlib
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs

from evershell.core import deadline
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.errors import UnavailableError
from evershell.core.ids import new_key_id
from evershell.store import keys as keys_module
from evershell.store.keys import PostgresKeys
from evershell.store.pool import Pool
from tests.support.store.examples import NOW
from tests.support.waiting import eventually_async

SHA256 = hashlib.sha256(b"sk_secret").digest()


def key(expires_at: datetime | None = None) -> ApiKey:
    return ApiKey(
        id=new_key_id(),
        org_id="org_a",
        name="ci",
        template=KeyTemplate.SUBMIT_OBSERVE,
        created_at=NOW,
        expires_at=expires_at,
    )


async def test_an_organization_keeps_one_slug(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    assert await keys.find_org_slug("org_a") is None
    await keys.ensure_org("org_a", "acme")
    await keys.ensure_org("org_a", "acme")
    assert await keys.find_org_slug("org_a") == "acme"
    await keys.ensure_org("org_a", "acme-2")
    assert await keys.find_org_slug("org_a") == "acme-2"
    with pytest.raises(ValueError, match="slug"):
        await keys.ensure_org("org_b", "acme-2")
    assert await keys.find_org_slug("org_b") is None


async def test_a_key_is_found_by_its_hash_until_it_is_revoked(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    await keys.ensure_org("org_a", "acme")
    created = key(expires_at=NOW + timedelta(days=30))
    await keys.create_key(created, SHA256)
    assert await keys.find_key(SHA256) == created
    assert await keys.find_key(bytes(32)) is None
    assert await keys.revoke_key(created.id, NOW)
    assert not await keys.revoke_key(created.id, NOW)
    assert not await keys.revoke_key("key_unknown", NOW)
    assert await keys.find_key(SHA256) == replace(created, revoked_at=NOW)


async def test_concurrent_lookups_of_keys_share_queries(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    await keys.ensure_org("org_a", "acme")
    created = key()
    await keys.create_key(created, SHA256)
    before = pool.get_stats()["requests_num"]
    unknown = [hashlib.sha256(str(number).encode()).digest() for number in range(700)]
    answers = await asyncio.gather(
        *(keys.find_key(sha256) for sha256 in [*unknown, SHA256, *unknown])
    )
    assert answers == [*([None] * 700), created, *([None] * 700)]
    # The first lookup has its own query. The other 1,400 lookups share three, of up to 500 each.
    assert pool.get_stats()["requests_num"] - before == 4


async def test_a_lookup_ends_at_the_deadline_of_its_caller(database_url: str, pool: Pool) -> None:
    """The deadline holds although earlier callers of the same batch wait longer."""
    keys = PostgresKeys(pool)
    async with await psycopg.AsyncConnection.connect(database_url) as locking:
        await locking.execute("LOCK TABLE api_keys")
        others = [asyncio.create_task(keys.find_key(bytes([number]) * 32)) for number in range(3)]
        await asyncio.sleep(0)

        async def look_up_in_time() -> None:
            deadline.begin(0.5)
            with pytest.raises(UnavailableError):
                await keys.find_key(SHA256)

        # The other callers wait longer than this.
        async with asyncio.timeout(3):
            await asyncio.create_task(look_up_in_time())
        await locking.rollback()
    assert await asyncio.gather(*others) == [None] * 3
    assert await keys.find_key(SHA256) is None


async def test_the_use_of_a_key_is_written_at_most_once_a_minute(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    await keys.ensure_org("org_a", "acme")
    created = key()
    await keys.create_key(created, SHA256)

    async def last_used(after_seconds: float) -> float:
        used_at = NOW + timedelta(seconds=after_seconds)
        keys.record_use(created.id, used_at.timestamp())
        keys.record_use("key_unknown", used_at.timestamp())
        await keys.drained()
        found = await keys.find_key(SHA256)
        assert found is not None and found.last_used_at is not None
        return (found.last_used_at - NOW).total_seconds()

    assert await last_used(0) == 0
    assert await last_used(59) == 0
    assert await last_used(60) == 60
    # An earlier time, which another worker reports late, changes nothing.
    assert await last_used(30) == 60


async def test_a_use_that_the_database_refuses_is_stored_later(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database refuses, for example, while the service's role may not update keys yet."""
    monkeypatch.setattr(keys_module, "_USE_SECONDS", 0.01)
    keys = PostgresKeys(pool)
    await keys.ensure_org("org_a", "acme")
    created = key()
    await keys.create_key(created, SHA256)
    with psycopg.connect(database_url, autocommit=True) as owner, capture_logs() as logs:
        owner.execute("ALTER TABLE api_keys RENAME COLUMN last_used_at TO away")
        keys.record_use(created.id, NOW.timestamp())
        await eventually_async(lambda: "key_use_not_stored" in [each["event"] for each in logs])
        owner.execute("ALTER TABLE api_keys RENAME COLUMN away TO last_used_at")

        async def is_stored() -> bool:
            found = await keys.find_key(SHA256)
            return found is not None and found.last_used_at == NOW

        await eventually_async(is_stored)
