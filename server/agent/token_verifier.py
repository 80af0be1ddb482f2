"""Verifies the tokens with which the control plane calls the agent."""

import json
import time
import warnings
from collections.abc import Callable

from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OKPKey

from server.pod.tokens import AGENT_AUDIENCE, ISSUER, SIGNAL_TOKEN_SECONDS

# The tolerated difference between the clocks of the two hosts.
_CLOCK_SKEW_SECONDS = 5
_MAX_CACHED_TOKENS = 256


class InvalidTokenError(Exception):
    """The token is not valid. The text says why."""


class TokenVerifier:
    """Verifies signal tokens (pod/tokens.py). A verified token is cached until it expires."""

    def __init__(
        self, public_key: str, workspace_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        """`public_key` is an Ed25519 JWK as JSON. Raises ValueError if it is not."""
        try:
            self._key = OKPKey.import_key(json.loads(public_key))
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"the control plane's public key is no Ed25519 JWK: {error}"
            ) from error
        if self._key.curve_name != "Ed25519":
            raise ValueError(
                f"the control plane's public key is of curve {self._key.curve_name}, not Ed25519"
            )
        self._clock = clock
        self._workspace_id = workspace_id
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": AGENT_AUDIENCE},
            exp={"essential": True},
            workspace_id={"essential": True, "value": workspace_id},
        )
        # Maps each token to its expiry, in seconds since 1970.
        self._verified: dict[str, float] = {}

    def verify(self, authorization: str) -> None:
        """Takes the value of the `authorization` header. Raises InvalidTokenError."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidTokenError("A bearer token is needed.")
        now = self._clock()
        if self._verified.get(token, 0) > now:
            return
        try:
            with warnings.catch_warnings():
                # joserfc deprecates the name EdDSA; RFC 9864 calls the same algorithm Ed25519.
                warnings.simplefilter("ignore", SecurityWarning)
                claims = jwt.decode(token, self._key, algorithms=["EdDSA", "Ed25519"]).claims
            self._claims.validate(claims)
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidTokenError(f"The token is not valid: {error}.") from error
        if not now < claims["exp"] <= now + SIGNAL_TOKEN_SECONDS + _CLOCK_SKEW_SECONDS:
            raise InvalidTokenError("The token has expired, or its lifetime is too long.")
        if len(self._verified) >= _MAX_CACHED_TOKENS:
            self._verified = {
                known: expires for known, expires in self._verified.items() if expires > now
            }
        if len(self._verified) < _MAX_CACHED_TOKENS:
            self._verified[token] = claims["exp"]
