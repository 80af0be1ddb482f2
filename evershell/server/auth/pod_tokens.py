"""Derives the secrets of agents, and verifies their tokens. pod/tokens.py has the format."""

import hmac
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from functools import lru_cache

from joserfc.jwk import OKPKey

from evershell.server.core import errors
from evershell.server.core.errors import Failure
from evershell.server.core.runtime import AgentIdentity
from evershell.server.pod.tokens import (
    accepted_minutes,
    bootstrap_token,
    minute_of,
    parse_bootstrap_token,
    parse_runtime_token,
    runtime_token,
    signal_token,
)

# An entry takes about 0.5 kB.
_MAX_SIGNAL_TOKENS = 10_000


def new_key() -> str:
    """A new private key, as a JWK in JSON."""
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True))


def private_bytes(private_jwk: str) -> bytes:
    """The 32 secret bytes of a private key: `d` of its JWK (RFC 8037)."""
    encoded: str = json.loads(private_jwk)["d"]
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


class PodTokens:
    """The control plane's side of the tokens. It derives all secrets from the private key.

    Nothing is stored, so every worker has the same secrets. Another key gives other secrets.
    """

    def __init__(self, private_jwk: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # The pseudorandom key of HKDF (RFC 5869), extracted from the private key.
        self._secrets_key = hmac.digest(b"", private_bytes(private_jwk), "sha256")
        # Minting takes 5 µs, and many calls to an agent take place in the same minute.
        self._signal_metadata = lru_cache(_MAX_SIGNAL_TOKENS)(self._mint_signal_metadata)

    def runtime_secret(self, workspace_id: str, epoch: int) -> bytes:
        """The secret with which this agent makes its runtime tokens."""
        return self._secret("runtime", workspace_id, epoch)

    def signal_secret(self, workspace_id: str, epoch: int) -> bytes:
        """The secret that authenticates the control plane to this agent."""
        return self._secret("signal", workspace_id, epoch)

    def signal_metadata(self, workspace_id: str, epoch: int) -> tuple[tuple[str, str], ...]:
        """The metadata of a call to this agent: a signal token of the current minute."""
        return self._signal_metadata(workspace_id, epoch, minute_of(self._clock()))

    def identify(self, token: str) -> AgentIdentity:
        """The agent that the runtime token belongs to. Raises Failure unauthenticated.

        If the token is authentic, but of another time, the failure has the time of the control
        plane, so that the agent can make another one.
        """
        named = parse_runtime_token(token)
        if named is None:
            raise errors.unauthenticated("The token is not a runtime token.")
        workspace_id, epoch, minute = named
        secret = self.runtime_secret(workspace_id, epoch)
        if not hmac.compare_digest(token, runtime_token(workspace_id, epoch, secret, minute)):
            raise errors.unauthenticated("The runtime token is not authentic.")
        now = self._clock()
        if minute not in accepted_minutes(now):
            message = "The runtime token is of another time. Make one of the current minute."
            raise Failure("unauthenticated", message, unix_seconds=int(now))
        return AgentIdentity(workspace_id, epoch)

    def bootstrap_token(self, workspace_id: str, epoch: int) -> str:
        """The token with which this agent gets its secrets."""
        secret = self._secret("bootstrap", workspace_id, epoch)
        return bootstrap_token(workspace_id, epoch, secret)

    def identify_bootstrapping(self, token: str) -> AgentIdentity:
        """The agent that the bootstrap token belongs to. Raises Failure unauthenticated.

        Does not say whether the token was spent.
        """
        named = parse_bootstrap_token(token)
        if named is None:
            raise errors.unauthenticated("The token is not a bootstrap token.")
        if not hmac.compare_digest(token, self.bootstrap_token(*named)):
            raise errors.unauthenticated("The bootstrap token is not authentic.")
        return AgentIdentity(*named)

    def _secret(self, purpose: str, workspace_id: str, epoch: int) -> bytes:
        # The expansion of HKDF, for a single block. The epoch is a number and comes last, so no two
        # agents have the same `info`.
        info = f"evershell {purpose} {workspace_id} {epoch}\x01"
        return hmac.digest(self._secrets_key, info.encode(), "sha256")

    def _mint_signal_metadata(
        self, workspace_id: str, epoch: int, minute: int
    ) -> tuple[tuple[str, str], ...]:
        token = signal_token(self.signal_secret(workspace_id, epoch), minute)
        return (("authorization", f"Bearer {token}"),)
