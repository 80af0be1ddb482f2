"""API keys: `sk_` and 256 random bits. Only the SHA-256 of a key is stored.

A slow hash would add nothing, because random keys cannot be guessed.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

import structlog
from cachetools import TTLCache

from evershell.core import credentials, errors
from evershell.core.caller import ApiKey, Caller

_RANDOM_BYTES = 32
# A revoked key stops working on every worker within this time. The service promises 10 s.
CACHE_SECONDS = 5.0
_MAX_CACHED_KEYS = 10_000

FindKey = Callable[[bytes], Awaitable[ApiKey | None]]


def new_secret() -> str:
    """A new key. Its creator sees it once; it is not stored."""
    return credentials.API_KEY + secrets.token_urlsafe(_RANDOM_BYTES)


def fingerprint(secret: str) -> bytes:
    """The SHA-256 of a key, under which it is stored."""
    return hashlib.sha256(secret.encode()).digest()


class ApiKeys:
    """Authenticates callers by API key."""

    def __init__(
        self,
        find_key: FindKey,
        record_use: Callable[[str, float], None] = lambda key_id, now: None,
        clock: Callable[[], float] = lambda: time.time(),
    ) -> None:
        """For each call with a valid key, calls `record_use` with the id of the key and the time.

        `clock` is the time of the service, in seconds since 1970.
        """
        self._find_key = find_key
        self._record_use = record_use
        self._clock = clock
        # Maps the SHA-256 of a key to the key and its caller.
        self._known: TTLCache[bytes, tuple[ApiKey, Caller]] = TTLCache(
            maxsize=_MAX_CACHED_KEYS, ttl=CACHE_SECONDS
        )
        # Saves a query for each call with a bad key. Good keys are cached separately, so that bad
        # keys cannot evict them.
        self._unknown: TTLCache[bytes, bool] = TTLCache(maxsize=_MAX_CACHED_KEYS, ttl=CACHE_SECONDS)

    async def authenticate(self, secret: str) -> Caller:
        """The key's caller. Raises Failure unauthenticated, or UnavailableError."""
        digest = fingerprint(secret)
        # Reads each cache once, because an entry may expire between two reads.
        known = self._known.get(digest)
        if known is None and digest not in self._unknown:
            known = await self._look_up(digest)
        if known is None:
            raise errors.unauthenticated("The API key is not known, or was revoked.")
        key, caller = known
        now = self._clock()
        if key.expires_at is not None and key.expires_at.timestamp() <= now:
            raise errors.unauthenticated(f"The API key {key.id} has expired.")
        self._record_use(key.id, now)
        return caller

    async def _look_up(self, digest: bytes) -> tuple[ApiKey, Caller] | None:
        key = await self._find_key(digest)
        if key is None or key.revoked_at is not None:
            self._unknown[digest] = True
            return None
        known = self._known[digest] = key, key.caller()
        return known


STORE_INTERVAL_SECONDS = 60.0
# Bounds the memory while the database is unavailable. Uses of further keys are not recorded.
_MAX_KEYS = 100_000

StoreUses = Callable[[Mapping[str, datetime]], Awaitable[None]]

_log = structlog.get_logger()


class KeyUse:
    """Records the time of the last use of each key."""

    def __init__(self, store_uses: StoreUses) -> None:
        """`store_uses` takes key ids with the time of their last use.

        If it raises, the times are stored a minute later.
        """
        self._store_uses = store_uses
        # In seconds since 1970.
        self._used: dict[str, float] = {}

    def record(self, key_id: str, now: float) -> None:
        """Notes that the key was used. `now` is in seconds since 1970."""
        if len(self._used) < _MAX_KEYS or key_id in self._used:
            self._used[key_id] = now

    async def run(self) -> None:
        """Stores the times every minute, until it is cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(STORE_INTERVAL_SECONDS)
                await self.store()
        finally:
            await self.store()

    async def store(self) -> None:
        if not self._used:
            return
        used, self._used = self._used, {}
        try:
            await self._store_uses(
                {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in used.items()}
            )
        except Exception as error:  # noqa: BLE001 - e.g. a role that may not update keys
            _log.warning("key_use_not_stored", error=str(error), keys=len(used))
            # Uses that were recorded in the meantime are newer.
            self._used = used | self._used
