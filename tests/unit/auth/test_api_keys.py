"""API keys: known, unknown, revoked and expired keys, the cache of lookups, and their last use."""

import time
from datetime import UTC, datetime
from functools import partial

import pytest
from cachetools import TTLCache

from evershell.auth import api_keys
from evershell.auth.api_keys import CACHE_SECONDS, ApiKeys, fingerprint, new_secret
from evershell.core.errors import Failure, UnavailableError
from tests.unit.auth.fake_keys import FakeKeys, FakeTimer

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    timer = FakeTimer()
    monkeypatch.setattr(api_keys, "TTLCache", partial(TTLCache, timer=timer))
    return timer


@pytest.fixture
def stored() -> FakeKeys:
    return FakeKeys()


@pytest.fixture
def keys(timer: FakeTimer, stored: FakeKeys) -> ApiKeys:
    return ApiKeys(stored.find)


async def refused(keys: ApiKeys, secret: str) -> None:
    with pytest.raises(Failure) as raised:
        await keys.authenticate(secret)
    assert raised.value.slug == "unauthenticated"
    assert secret not in raised.value.message and secret not in str(raised.value.details)


def test_a_key_has_256_random_bits_after_its_prefix() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("sk_") and len(secret) == len("sk_") + 43 for secret in secrets)


async def test_a_known_key_identifies_its_caller(keys: ApiKeys, stored: FakeKeys) -> None:
    caller = await keys.authenticate(stored.add())
    assert (caller.org_id, caller.actor_id, caller.user_id) == ("org_a", "key_1", None)
    assert caller.scopes == {"workspace:read", "audit:read"}


async def test_only_the_fingerprint_is_looked_up_and_cached(
    keys: ApiKeys, stored: FakeKeys
) -> None:
    secret = stored.add()
    await keys.authenticate(secret)
    assert stored.asked == [fingerprint(secret)]
    assert secret not in repr(vars(keys))


async def test_an_unknown_key_is_refused_and_looked_up_once(
    keys: ApiKeys, stored: FakeKeys
) -> None:
    secret = new_secret()
    await refused(keys, secret)
    await refused(keys, secret)
    assert len(stored.asked) == 1


async def test_a_revocation_takes_effect_when_the_cache_entry_expires(
    keys: ApiKeys, stored: FakeKeys, timer: FakeTimer
) -> None:
    """The use of the key does not keep its cache entry alive."""
    secret = stored.add()
    await keys.authenticate(secret)
    stored.revoke(secret)
    timer.now = CACHE_SECONDS - 0.1
    await keys.authenticate(secret)
    timer.now = CACHE_SECONDS
    await refused(keys, secret)
    assert CACHE_SECONDS < 10


async def test_a_database_failure_is_not_cached(keys: ApiKeys, stored: FakeKeys) -> None:
    secret = stored.add()
    stored.unavailable = True
    with pytest.raises(UnavailableError):
        await keys.authenticate(secret)
    stored.unavailable = False
    await keys.authenticate(secret)


async def test_a_cache_entry_may_expire_during_its_lookup(
    keys: ApiKeys, stored: FakeKeys, timer: FakeTimer
) -> None:
    secret = stored.add()
    await keys.authenticate(secret)
    for ticks in range(1, 6):
        timer.now, timer.tick = timer.now + CACHE_SECONDS - ticks, 1.0
        await keys.authenticate(secret)
        timer.tick = 0.0
        timer.now += CACHE_SECONDS
        await keys.authenticate(secret)


async def test_unknown_keys_do_not_evict_a_known_one(
    monkeypatch: pytest.MonkeyPatch, stored: FakeKeys
) -> None:
    monkeypatch.setattr(api_keys, "_MAX_CACHED_KEYS", 10)
    keys, secret = ApiKeys(stored.find), stored.add()
    await keys.authenticate(secret)
    for _ in range(50):
        await refused(keys, new_secret())
    asked = len(stored.asked)
    await keys.authenticate(secret)
    assert len(stored.asked) == asked


async def test_a_key_is_refused_from_its_expiry_on_also_while_it_is_cached(
    monkeypatch: pytest.MonkeyPatch, keys: ApiKeys, stored: FakeKeys
) -> None:
    secret, expires_at = stored.add(), datetime(2026, 1, 2, tzinfo=UTC)
    stored.expire(secret, expires_at)
    monkeypatch.setattr(time, "time", lambda: expires_at.timestamp() - 0.001)
    await keys.authenticate(secret)
    monkeypatch.setattr(time, "time", expires_at.timestamp)
    with pytest.raises(Failure, match="The API key key_1 has expired") as raised:
        await keys.authenticate(secret)
    assert raised.value.slug == "unauthenticated"
    assert len(stored.asked) == 1


async def test_each_accepted_call_records_the_use_of_its_key(
    monkeypatch: pytest.MonkeyPatch, stored: FakeKeys
) -> None:
    uses: list[tuple[str, float]] = []
    keys = ApiKeys(stored.find, lambda key_id, now: uses.append((key_id, now)))
    secret = stored.add()
    for moment in (1.0, 2.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        await keys.authenticate(secret)
    assert uses == [("key_1", 1.0), ("key_1", 2.0)]
    await refused(keys, new_secret())
    stored.expire(expired := stored.add(), datetime(1970, 1, 1, tzinfo=UTC))
    with pytest.raises(Failure):
        await keys.authenticate(expired)
    assert len(uses) == 2
