"""Authenticates callers by the header `authorization`."""

from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from evershell.auth.api_keys import ApiKeys
from evershell.auth.session_tokens import SessionTokens
from evershell.core import credentials, errors
from evershell.core.caller import Caller

_SCHEME = "bearer "
_MAX_TOKEN_CHARACTERS = 16_384


def bearer_token(authorization: str | None) -> str:
    """The token of `Bearer <token>` (RFC 6750). Raises Failure unauthenticated."""
    if not authorization:
        raise errors.unauthenticated("The call carries no credential.")
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise errors.unauthenticated("The credential is not a bearer token.")
    token = authorization[len(_SCHEME) :].strip()
    if not token or len(token) > _MAX_TOKEN_CHARACTERS:
        raise errors.unauthenticated("The bearer token is empty or too long.")
    return token


class Authenticator:
    """Authenticates callers by API key or session token. The prefix tells the two apart."""

    def __init__(self, api_keys: ApiKeys, sessions: SessionTokens) -> None:
        self._api_keys = api_keys
        self._sessions = sessions

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller. Raises Failure unauthenticated, or UnavailableError."""
        token = bearer_token(authorization)
        if token.startswith(credentials.API_KEY):
            return await self._api_keys.authenticate(token)
        if token.startswith(credentials.JWT):
            return await self._sessions.authenticate(token)
        raise errors.unauthenticated(
            f"The bearer token is neither an API key ({credentials.API_KEY}…) nor a session token "
            f"({credentials.JWT}…)."
        )


class HostBinding:
    """Limits the credentials of an organization to its host, `<slug>.<public domain>`."""

    def __init__(
        self, public_domain: str, find_org_slug: Callable[[str], Awaitable[str | None]]
    ) -> None:
        self._suffix = "." + public_domain.lower()
        self._find_org_slug = find_org_slug
        self._slugs: TTLCache[str, tuple[str | None]] = TTLCache(maxsize=10_000, ttl=60)

    async def check(self, caller: Caller, host: str) -> None:
        """Raises Failure permission_denied unless the host belongs to the caller's organization."""
        # Reads the cache once, because the entry may expire between two reads.
        cached = self._slugs.get(caller.org_id)
        if cached is None:
            cached = self._slugs[caller.org_id] = (await self._find_org_slug(caller.org_id),)
        (slug,) = cached
        if slug is None or host.partition(":")[0].lower() != slug + self._suffix:
            raise errors.permission_denied(
                f"Your credential does not belong to the organization at {host}. Call the host of "
                "your own organization.",
                [],
            )
