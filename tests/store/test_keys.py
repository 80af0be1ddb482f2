import hashlib
from dataclasses import replace

import psycopg
import pytest

from server.core.api_key import ApiKey, KeyTemplate
from server.core.ids import new_key_id
from server.store.keys import PostgresKeys
from server.store.pool import Pool
from tests.store.examples import NOW

SHA256 = hashlib.sha256(b"sk_secret").digest()


def key(org_id: str = "org_a") -> ApiKey:
    return ApiKey(id=new_key_id(), org_id=org_id, name="ci", template=KeyTemplate.SUBMIT_OBSERVE, created_at=NOW)


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
    made = key()
    await keys.create_key(made, SHA256)
    assert await keys.find_key(SHA256) == made
    assert await keys.find_key(bytes(32)) is None
    assert await keys.revoke_key(made.id, NOW)
    assert not await keys.revoke_key(made.id, NOW)
    assert not await keys.revoke_key("key_unknown", NOW)
    assert await keys.find_key(SHA256) == replace(made, revoked_at=NOW)


async def test_keys_are_listed_per_organization(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    for org_id, slug in (("org_a", "acme"), ("org_b", "bolt")):
        await keys.ensure_org(org_id, slug)
    mine = [key(), key()]
    for number, each in enumerate([*mine, key("org_b")]):
        await keys.create_key(each, bytes([number]) * 32)
    assert await keys.list_keys("org_a") == sorted(mine, key=lambda each: each.id, reverse=True)


async def test_two_keys_never_share_a_hash(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    await keys.ensure_org("org_a", "acme")
    await keys.create_key(key(), SHA256)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await keys.create_key(key(), SHA256)
