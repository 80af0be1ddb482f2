"""Session tokens: JWTs (RFC 7519) of the platform's identity provider, verified against its JWK set
(RFC 7517).
"""

import asyncio
import hashlib
import json
import time
import urllib.request
import warnings
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cachetools import LRUCache, TTLCache
from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, KeySet

from server.core import errors
from server.core.caller import MAX_NAME_BYTES, Caller, CredentialKind, is_name
from server.core.errors import Failure

# `EdDSA` is what RFC 8037 calls the algorithm that RFC 9864 calls `Ed25519`; providers send either.
ALGORITHMS = ["RS256", "ES256", "EdDSA", "Ed25519"]
# For clocks that differ a little.
LEEWAY_SECONDS = 5
# A token that was verified is not verified again for this long, nor beyond its `exp`.
CACHE_SECONDS = 60.0
# How long a token with a wrong signature is remembered. The provider may replace a key under the
# same `kid`, which makes it valid.
_FORGED_SECONDS = 10.0
_MAX_CACHED_TOKENS = 10_000
# Wrong signatures that are verified in a second. One takes up to 130 µs, so they take at most an
# eighth of the worker's time.
FORGERIES_PER_SECOND = 1_000
# The end of the year 9999, the last that RFC 3339 can write.
_MAX_TIME = 253_402_300_799
# An unknown `kid` has the set read again, but not more often than this: anyone can send unknown
# ones.
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
        """The set, read again when it is old, or lacks this key. Raises UnavailableError when it
        was never readable.
        """
        # A key that is known serves on while another call reads; a key that is not waits for what
        # that call finds.
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
            # The keys that are known go on serving while the provider is away, or answers with
            # something else.
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
    """Keys that are not understood are left out (RFC 7517, section 5). Raises when it is not a JWK
    set.
    """
    entries = json.loads(content)["keys"]
    keys = []
    for entry in entries:
        with suppress(JoseError, ValueError, TypeError, LookupError):
            keys.append(JWKRegistry.import_key(entry))
    if entries and not keys:
        raise ValueError("the JWK set has no key that is understood")
    return keys


@dataclass(frozen=True, slots=True)
class _Verified:
    """The caller of a verified token, and the Unix time until which the token is not verified
    again.
    """

    caller: Caller
    until: float


class SessionTokens:
    """Who calls with a session token.

    Anyone can send any number of bad tokens. The cheap checks therefore run before the signature is
    verified, bad tokens are cached separately from good ones, and wrong signatures get a bounded
    share of the worker's time.
    """

    def __init__(self, keys: JwkSet, issuer: str, audience: str) -> None:
        # The older name of an algorithm that is accepted on purpose is not worth a warning a
        # process.
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
        # By SHA-256, so that a long token takes no more memory than a short one.
        self._verified: LRUCache[bytes, _Verified] = LRUCache(maxsize=_MAX_CACHED_TOKENS)
        self._forged: TTLCache[bytes, bool] = TTLCache(
            maxsize=_MAX_CACHED_TOKENS, ttl=_FORGED_SECONDS
        )
        # When all the wrong signatures so far are paid for, by the monotonic clock: at
        # FORGERIES_PER_SECOND, up to a second ahead.
        self._forgeries_paid_at = 0.0

    async def authenticate(self, token: str) -> Caller:
        """The token's caller. Raises Failure unauthenticated, rate_limited; UnavailableError."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None and time.time() < known.until:
            return known.caller
        if digest in self._forged:
            raise _invalid()
        try:
            signed = jws.extract_compact(token.encode())
            claims = json.loads(signed.payload)
            self._claims.validate(claims)
            caller = _caller(claims)
            kid = signed.headers().get("kid")
            keys = await self._keys.get(kid if isinstance(kid, str) else None)
            # A token that was verified before is verified again without this check, so a flood of
            # wrong signatures cannot block it.
            if known is None:
                self._check_forgeries()
            if not jws.validate_compact(signed, keys, ALGORITHMS):
                self._note_forgery(digest)
                raise _invalid()
        except ExpiredTokenError as error:
            raise errors.unauthenticated("The session token has expired.") from error
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # Includes payloads that are not JSON objects or are nested too deeply for the parser.
            raise _invalid() from error
        self._verified[digest] = _Verified(
            caller, min(float(claims["exp"]), time.time() + CACHE_SECONDS)
        )
        return caller

    def _check_forgeries(self) -> None:
        if self._forgeries_paid_at >= time.monotonic() + 1:
            message = "New session tokens cannot be verified now, because too many tokens with a wrong signature are being sent."
            raise errors.rate_limited(message, retry_after_seconds=1)

    def _note_forgery(self, digest: bytes) -> None:
        self._forgeries_paid_at = (
            max(self._forgeries_paid_at, time.monotonic()) + 1 / FORGERIES_PER_SECOND
        )
        self._verified.pop(digest, None)
        self._forged[digest] = True


def _invalid() -> Failure:
    return errors.unauthenticated("The session token is not valid.")


def _caller(claims: dict[str, Any]) -> Caller:
    """The caller that the claims name. Raises Failure unauthenticated."""
    if not all(0 <= claims[name] <= _MAX_TIME for name in ("exp", "nbf", "iat") if name in claims):
        raise errors.unauthenticated(
            "The session token's times are not within the years 1970 to 9999."
        )
    subject, org_id, scopes = claims["sub"], claims["org_id"], claims.get("permissions", [])
    if not is_name(subject) or not is_name(org_id):
        message = f"The session token's `sub` and `org_id` must be 1 to {MAX_NAME_BYTES} bytes of printable text."
        raise errors.unauthenticated(message)
    if not isinstance(scopes, list) or not all(is_name(scope) for scope in scopes):
        raise errors.unauthenticated("The session token's `permissions` is not a list of scopes.")
    return Caller(
        org_id=org_id,
        actor_id=subject,
        credential_kind=CredentialKind.SESSION,
        scopes=frozenset(scopes),
    )
