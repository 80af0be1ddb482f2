"""API keys: `sk_` and 256 random bits. Only the SHA-256 of a key is stored.

A slow hash would add nothing, because random keys cannot be guessed.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from server.core import errors
from server.core.api_key import ApiKey
from server.core.caller import Caller

PREFIX = "sk_"
_RANDOM_BYTES = 32
# A revoked key stops working on every worker within this time. The promise is 10 s.
CACHE_SECONDS = 5.0
_MAX_CACHED_KEYS = 10_000

FindKey = Callable[[bytes], Awaitable[ApiKey | None]]


def new_secret() -> str:
    """A new key. Its creator sees it once; it is not stored."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def fingerprint(secret: str) -> bytes:
    """The SHA-256 of a key, under which it is stored."""
    return hashlib.sha256(secret.encode()).digest()


class ApiKeys:
    """Authenticates callers by API key."""

    def __init__(self, find_key: FindKey) -> None:
        self._find_key = find_key
        self._callers: TTLCache[bytes, Caller] = TTLCache(
            maxsize=_MAX_CACHED_KEYS, ttl=CACHE_SECONDS
        )
        # Saves a query for each call with a bad key. Separate from the good keys, so that unknown
        # keys cannot evict them.
        self._unknown: TTLCache[bytes, bool] = TTLCache(maxsize=_MAX_CACHED_KEYS, ttl=CACHE_SECONDS)

    async def authenticate(self, secret: str) -> Caller:
        """The key's caller. Raises Failure unauthenticated; UnavailableError."""
        digest = fingerprint(secret)
        # Reads each cache once, because an entry may expire between two reads.
        caller = self._callers.get(digest)
        if caller is None and digest not in self._unknown:
            caller = await self._look_up(digest)
        if caller is None:
            raise errors.unauthenticated("The API key is not known, or was revoked.")
        return caller

    async def _look_up(self, digest: bytes) -> Caller | None:
        key = await self._find_key(digest)
        if key is None or key.revoked_at is not None:
            self._unknown[digest] = True
            return None
        caller = self._callers[digest] = key.caller()
        return caller
