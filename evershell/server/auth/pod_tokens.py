"""The tokens between the control plane and its agents. pod/tokens.py has their format.

A runtime token lets the agent of one workspace and one epoch call RuntimeService and nothing else.
It does not expire, because every transaction of an agent checks its epoch. A signal token lets the
control plane call the agent of one workspace and one epoch, for a few minutes.
"""

import hmac
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from functools import lru_cache

from cachetools import TTLCache
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from evershell.server.core import errors
from evershell.server.core.caller import is_valid_name
from evershell.server.core.runtime import AgentIdentity
from evershell.server.pod.tokens import ISSUER, RUNTIME_AUDIENCE, minute_of, signal_token

# The largest bigint of PostgreSQL.
_MAX_EPOCH = 2**63 - 1
_HEADER = {"alg": "Ed25519", "typ": "JWT"}
# An entry takes about 0.5 kB.
_MAX_SIGNAL_TOKENS = 10_000


def new_key() -> str:
    """A new private key, as a JWK in JSON."""
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True))


class PodTokens:
    """Mints both kinds of tokens, and verifies runtime tokens."""

    def __init__(self, private_jwk: str, clock: Callable[[], float] = time.time) -> None:
        self._key = OKPKey.import_key(json.loads(private_jwk))
        self._clock = clock
        # The pseudorandom key of HKDF (RFC 5869), extracted from the private key.
        self._secrets_key = hmac.digest(b"", _private_bytes(private_jwk), "sha256")
        # Minting takes 5 µs, and many calls to an agent take place in the same minute.
        self._signal_metadata = lru_cache(_MAX_SIGNAL_TOKENS)(self._mint_signal_metadata)
        # A verification takes 130 µs, and an agent uses the same token for its whole life.
        self._identities: TTLCache[str, AgentIdentity] = TTLCache(maxsize=50_000, ttl=300)

    def runtime_token(self, agent: AgentIdentity) -> str:
        """A token for the agent."""
        claims = {
            "iss": ISSUER,
            "aud": RUNTIME_AUDIENCE,
            "workspace_id": agent.workspace_id,
            "epoch": agent.epoch,
        }
        return jwt.encode(_HEADER, claims, self._key, algorithms=["Ed25519"])

    def signal_secret(self, workspace_id: str, epoch: int) -> bytes:
        """The secret that authenticates the control plane to this agent. It is not stored.

        Another signing key gives another secret.
        """
        # The expansion of HKDF, for a single block. The epoch is a number and comes last, so no two
        # agents have the same `info`.
        info = f"evershell signal {workspace_id} {epoch}\x01"
        return hmac.digest(self._secrets_key, info.encode(), "sha256")

    def signal_metadata(self, workspace_id: str, epoch: int) -> tuple[tuple[str, str], ...]:
        """The metadata of a call to this agent: a signal token of the current minute."""
        return self._signal_metadata(workspace_id, epoch, minute_of(self._clock()))

    def _mint_signal_metadata(
        self, workspace_id: str, epoch: int, minute: int
    ) -> tuple[tuple[str, str], ...]:
        token = signal_token(self.signal_secret(workspace_id, epoch), minute)
        return (("authorization", f"Bearer {token}"),)

    def identify(self, token: str) -> AgentIdentity:
        """The agent that the runtime token belongs to. Raises Failure unauthenticated."""
        identity = self._identities.get(token)
        if identity is None:
            identity = self._verify(token)
            self._identities[token] = identity
        return identity

    def _verify(self, token: str) -> AgentIdentity:
        try:
            claims = jwt.decode(token, self._key, algorithms=["Ed25519"]).claims
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise errors.unauthenticated("The runtime token is not valid.") from error
        if claims.get("iss") != ISSUER or claims.get("aud") != RUNTIME_AUDIENCE:
            raise errors.unauthenticated("The token is not a runtime token.")
        workspace_id, epoch = claims.get("workspace_id"), claims.get("epoch")
        # isinstance would accept True as an int.
        if (
            not is_valid_name(workspace_id)
            or type(epoch) is not int
            or not 1 <= epoch <= _MAX_EPOCH
        ):
            raise errors.unauthenticated("The runtime token names no workspace or no epoch.")
        return AgentIdentity(workspace_id, epoch)


def _private_bytes(private_jwk: str) -> bytes:
    """The 32 secret bytes of an Ed25519 key: `d` of its JWK (RFC 8037)."""
    encoded: str = json.loads(private_jwk)["d"]
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
