"""Session tokens: JWTs (RFC 7519) of the platform's identity provider.

The tokens are verified with the keys in the provider's JWK set (RFC 7517).
"""

import asyncio
import hashlib
import json
import time
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cachetools import LRUCache, TTLCache
from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, KeySet

from evershell.core import errors
from evershell.core.caller import MAX_NAME_BYTES, Caller, CredentialKind, is_valid_name
from evershell.core.errors import Failure

# `EdDSA` (RFC 8037) and `Ed25519` (RFC 9864) name the same algorithm. Providers use either name.
ALGORITHMS = ["RS256", "ES256", "EdDSA", "Ed25519"]
# The tolerated difference between the clocks of the provider and the service.
LEEWAY_SECONDS = 5
# How long a verified token is cached. It is never cached beyond its `exp`.
CACHE_SECONDS = 60.0
# How long a token with a wrong signature is cached. Kept short because the provider may replace
# a key under the same `kid`, which can make the token valid.
_FORGED_SECONDS = 10.0
_MAX_CACHED_TOKENS = 10_000
# How many new tokens with a wrong signature a worker verifies per second on average, at most. One
# takes up to 130 µs, so together they take at most an eighth of the worker's time.
FORGERIES_PER_SECOND = 1_000
# The end of the year 9999, the last year of RFC 3339.
_MAX_TIME = 253_402_300_799
# The subject of a session token must not begin with these prefixes. The ids of other actors begin
# with them: of the service itself, of API keys, and of agents.
_RESERVED_SUBJECTS = ("system:", "key_", "agent:")
# The shortest interval between two reads of the JWK set. A token with an unknown `kid` causes a
# read, and anyone can send such tokens.
_REFRESH_SECONDS = 10.0
# The JWK set is read again when it is older than this.
_MAX_AGE_SECONDS = 300.0


class JwkSet:
    """The provider's public keys, from a file or an http(s) URL."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: KeySet | None = None
        self._kids: frozenset[str] = frozenset()
        self._read_at = float("-inf")
        # The read in progress, if any. It continues even if the caller that started it goes away.
        self._reading: asyncio.Task[None] | None = None

    async def get(self, kid: str | None) -> KeySet:
        """Returns the JWK set. Reads it again if it is old or lacks the key `kid`.

        Raises UnavailableError if the set has never been read successfully.
        """
        # While another call reads the set, a call with a known key does not wait. A call with an
        # unknown key waits for the result.
        if self._is_stale(kid) and not (self._knows(kid) and self._reading):
            self._reading = self._reading or asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
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
            # The known keys stay in use while the provider is unreachable or does not send a JWK
            # set.
            return
        finally:
            self._read_at = time.monotonic()
            self._reading = None
        self._keys = KeySet(keys)
        self._kids = frozenset(key.kid for key in keys if key.kid is not None)

    def _load(self) -> bytes:
        if self._source.startswith(("http://", "https://")):
            with urllib.request.urlopen(  # noqa: S310 - the scheme is checked
                self._source, timeout=3.0
            ) as response:
                content: bytes = response.read()
                return content
        return Path(self._source).read_bytes()


def _import_keys(content: bytes) -> list[Key]:
    """The supported keys of a JWK set. Other keys are ignored (RFC 7517, section 5).

    Raises if the content is not a JWK set, or if it has keys but no supported one.
    """
    entries = json.loads(content)["keys"]
    keys = []
    for entry in entries:
        with suppress(JoseError, ValueError, TypeError, LookupError):
            keys.append(JWKRegistry.import_key(entry))
    if entries and not keys:
        raise ValueError("the JWK set has no supported key")
    return keys


@dataclass(frozen=True, slots=True)
class _Verified:
    """A verified token."""

    caller: Caller
    # When the token must be verified again, in seconds since 1970.
    until: float


class SessionTokens:
    """Authenticates callers by session token.

    Anyone can send any number of bad tokens. The cheap checks therefore run before the signature is
    verified, bad tokens are cached separately from good ones, and wrong signatures get a bounded
    share of the worker's time.
    """

    def __init__(
        self,
        keys: JwkSet,
        issuer: str,
        audience: str,
        clock: Callable[[], float] = lambda: time.time(),
    ) -> None:
        """`clock` returns UTC in seconds since 1970.

        It must not be the service's clock, because the times in a token are UTC.
        """
        # The deprecated name of the algorithm is accepted on purpose.
        warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)
        self._keys = keys
        self._clock = clock
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
            org_id={"essential": True},
        )
        # The keys of both caches are the SHA-256 of tokens, so that long tokens take no more memory
        # than short ones.
        self._verified: LRUCache[bytes, _Verified] = LRUCache(maxsize=_MAX_CACHED_TOKENS)
        self._forged: TTLCache[bytes, bool] = TTLCache(
            maxsize=_MAX_CACHED_TOKENS, ttl=_FORGED_SECONDS
        )
        # Limits the rate of wrong signatures by the generic cell rate algorithm (ITU-T I.371): each
        # wrong signature moves this monotonic time forward by 1 / FORGERIES_PER_SECOND. While the
        # time is a second or more in the future, new tokens are refused.
        self._forgeries_until = 0.0

    async def authenticate(self, token: str) -> Caller:
        """The token's caller.

        Raises Failure unauthenticated or rate_limited, or UnavailableError.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None and self._clock() < known.until:
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
                self._check_forgery_rate()
            if not jws.validate_compact(signed, keys, ALGORITHMS):
                self._record_forgery(digest)
                raise _invalid()
        except ExpiredTokenError as error:
            raise errors.unauthenticated("The session token has expired.") from error
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # Payloads that are not JSON objects, or are nested too deeply for the parser, also end
            # up here.
            raise _invalid() from error
        self._verified[digest] = _Verified(
            caller, min(float(claims["exp"]), self._clock() + CACHE_SECONDS)
        )
        return caller

    def _check_forgery_rate(self) -> None:
        if self._forgeries_until >= time.monotonic() + 1:
            message = (
                "New session tokens cannot be verified now, because too many tokens with a wrong "
                "signature are being sent."
            )
            raise errors.rate_limited(message, retry_after_seconds=1)

    def _record_forgery(self, digest: bytes) -> None:
        now = time.monotonic()
        self._forgeries_until = max(self._forgeries_until, now) + 1 / FORGERIES_PER_SECOND
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
    if not is_valid_name(subject) or not is_valid_name(org_id):
        message = (
            f"The session token's `sub` and `org_id` must be 1 to {MAX_NAME_BYTES} bytes of "
            "printable text."
        )
        raise errors.unauthenticated(message)
    if subject.lower().startswith(_RESERVED_SUBJECTS):
        # Such a subject would look like another kind of actor in tasks, events and the audit log.
        names = " or ".join(f"`{prefix}`" for prefix in _RESERVED_SUBJECTS)
        raise errors.unauthenticated(f"The session token's `sub` must not begin with {names}.")
    if not isinstance(scopes, list) or not all(is_valid_name(scope) for scope in scopes):
        raise errors.unauthenticated("The session token's `permissions` is not a list of scopes.")
    return Caller(
        org_id=org_id,
        actor_id=subject,
        credential_kind=CredentialKind.SESSION,
        scopes=frozenset(scopes),
        credential_id=token_id if is_valid_name(token_id := claims.get("jti")) else "",
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )
