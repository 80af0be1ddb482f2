"""Session tokens: JWTs (RFC 7519) of the platform's identity provider, verified against its JWK set (RFC 7517)."""

import asyncio
import json
import time
import urllib.request
import warnings
from base64 import urlsafe_b64decode
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cachetools import TTLCache
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, KeySet

from server.core import errors
from server.core.caller import Caller, CredentialKind

# `EdDSA` is what RFC 8037 calls the algorithm that RFC 9864 calls `Ed25519`; providers send either.
ALGORITHMS = ["RS256", "ES256", "EdDSA", "Ed25519"]
# For clocks that differ a little.
LEEWAY_SECONDS = 5
# A token that was verified is not verified again for this long, nor beyond its `exp`.
CACHE_SECONDS = 60.0
# An unknown `kid` has the set read again, but not more often than this: anyone can send unknown ones.
_REFRESH_SECONDS = 10.0
_MAX_AGE_SECONDS = 300.0
_FETCH_TIMEOUT_SECONDS = 3.0


class JwkSet:
    """The provider's public keys, from a file or an http(s) URL."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: KeySet | None = None
        self._kids: frozenset[str] = frozenset()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def get(self, kid: str | None) -> KeySet:
        """The set, read again when it is old, or lacks this key. Raises UnavailableError when it was never readable."""
        # A key that is known serves on while another call reads; a key that is not waits for what that call finds.
        if self._is_stale(kid) and not (self._knows(kid) and self._reading.locked()):
            async with self._reading:
                if self._is_stale(kid):
                    await self._read()
        if self._keys is None:
            raise errors.UnavailableError("the JWK set cannot be read")
        return self._keys

    def _knows(self, kid: str | None) -> bool:
        return self._keys is not None and (kid is None or kid in self._kids)

    def _is_stale(self, kid: str | None) -> bool:
        age_seconds = time.monotonic() - self._read_at
        return age_seconds > (_MAX_AGE_SECONDS if self._knows(kid) else _REFRESH_SECONDS)

    async def _read(self) -> None:
        try:
            keys = _import_keys(await asyncio.to_thread(self._load))
        except (OSError, HTTPException, ValueError, TypeError, LookupError, RecursionError):
            # The keys that are known go on serving while the provider is away, or answers with something else.
            return
        finally:
            self._read_at = time.monotonic()
        self._keys = KeySet(keys)
        self._kids = frozenset(key.kid for key in keys if key.kid is not None)

    def _load(self) -> bytes:
        if self._source.startswith(("http://", "https://")):
            with urllib.request.urlopen(self._source, timeout=_FETCH_TIMEOUT_SECONDS) as response:  # noqa: S310 - scheme checked
                content: bytes = response.read()
                return content
        return Path(self._source).read_bytes()


def _import_keys(content: bytes) -> list[Key]:
    """Keys that are not understood are left out (RFC 7517, section 5). Raises when it is not a JWK set."""
    entries = json.loads(content)["keys"]
    keys = []
    for entry in entries:
        with suppress(JoseError, ValueError, TypeError, LookupError):
            keys.append(JWKRegistry.import_key(entry))
    if entries and not keys:
        raise ValueError("the JWK set has no key that is understood")
    return keys


class Sessions:
    """Who calls with a session token."""

    def __init__(self, keys: JwkSet, issuer: str, audience: str) -> None:
        # The older name of an algorithm that is accepted on purpose is not worth a warning a process.
        warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)
        self._keys = keys
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
            org_id={"essential": True},
        )
        self._callers: TTLCache[str, tuple[Caller, float]] = TTLCache(maxsize=10_000, ttl=CACHE_SECONDS)

    async def authenticate(self, token: str) -> Caller:
        """The token's caller. Raises Failure unauthenticated; UnavailableError."""
        cached = self._callers.get(token)
        if cached is not None and time.time() < cached[1]:
            return cached[0]
        claims = await self._verify(token)
        caller = _caller(claims)
        self._callers[token] = (caller, float(claims["exp"]))
        return caller

    async def _verify(self, token: str) -> dict[str, Any]:
        try:
            kid = json.loads(_first_part(token)).get("kid")
            keys = await self._keys.get(kid if isinstance(kid, str) else None)
            verified = jwt.decode(token, keys, algorithms=ALGORITHMS)
            self._claims.validate(verified.claims)
        except ExpiredTokenError as error:
            raise errors.unauthenticated("The session token has expired.") from error
        except (JoseError, ValueError, AttributeError, RecursionError) as error:
            # Anyone can send a token that is nested deeper than a parser goes.
            raise errors.unauthenticated("The session token is not valid.") from error
        return verified.claims


def _first_part(token: str) -> bytes:
    head = token.split(".", 1)[0]
    return urlsafe_b64decode(head + "=" * (-len(head) % 4))


def _caller(claims: dict[str, Any]) -> Caller:
    subject, org_id, permissions = claims["sub"], claims["org_id"], claims.get("permissions", [])
    if not isinstance(subject, str) or not subject or not isinstance(org_id, str) or not org_id:
        raise errors.unauthenticated("The session token names no user or no organization.")
    if not isinstance(permissions, list) or not all(isinstance(scope, str) for scope in permissions):
        raise errors.unauthenticated("The session token's `permissions` is not a list of scopes.")
    return Caller(org_id=org_id, actor_id=subject, credential_kind=CredentialKind.SESSION, scopes=frozenset(permissions))
