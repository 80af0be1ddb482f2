"""API keys: `sk_` and 256 random bits. Only the SHA-256 of a key is stored.

A slow hash would add nothing, because random keys cannot be guessed.
"""

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable

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

        `clock` returns the time of the service, in seconds since 1970.
        """
        self._find_key = find_key
        self._record_use = record_use
        self._clock = clock
        # Maps the SHA-256 of a key to the key and its caller.
        self._known: TTLCache[bytes, tuple[ApiKey, Caller]] = TTLCache(
            maxsize=_MAX_CACHED_KEYS, ttl=CACHE_SECONDS
        )
        # The SHA-256 of bad keys, so that repeated calls with a bad key need no query. Good keys
        # are cached separately, so that bad keys cannot evict them.
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
