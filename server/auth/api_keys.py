"""API keys: `sk_` and 256 random bits. Only the SHA-256 is stored: what is random needs no slow hash."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from server.core import errors
from server.core.api_key import ApiKey
from server.core.caller import Caller

PREFIX = "sk_"
_RANDOM_BYTES = 32
# A revoked key stops working within this long on every worker; 10 s are promised.
CACHE_SECONDS = 5.0

FindKey = Callable[[bytes], Awaitable[ApiKey | None]]


def new_secret() -> str:
    """A new key, shown once."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def fingerprint(secret: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).digest()


class ApiKeys:
    """Who calls with an API key."""

    def __init__(self, find_key: FindKey) -> None:
        self._find_key = find_key
        # Unknown keys are kept too, as (None,), so that a client that goes on with a bad key costs no query a call.
        self._callers: TTLCache[bytes, tuple[Caller | None]] = TTLCache(maxsize=10_000, ttl=CACHE_SECONDS)

    async def authenticate(self, secret: str) -> Caller:
        """The key's caller. Raises Failure unauthenticated; UnavailableError."""
        digest = fingerprint(secret)
        # One look: between two, the entry could run out.
        found = self._callers.get(digest)
        if found is None:
            key = await self._find_key(digest)
            found = (key.caller() if key is not None and key.revoked_at is None else None,)
            self._callers[digest] = found
        (caller,) = found
        if caller is None:
            raise errors.unauthenticated("The API key is not known, or was revoked.")
        return caller
