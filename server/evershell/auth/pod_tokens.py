"""Derives the secrets of agents, and verifies their tokens. pod/tokens.py has the format."""

import hmac
import time
from collections.abc import Callable
from functools import lru_cache

from cachetools import LRUCache
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from evershell.auth.signing_keys import private_keys
from evershell.core import errors
from evershell.core.errors import Failure
from evershell.core.runtime import AgentIdentity
from evershell.pod.tokens import (
    accepted_minutes,
    bootstrap_token,
    minute_of,
    parse_bootstrap_token,
    parse_runtime_token,
    runtime_token,
    signal_token,
)

_SECRET_BYTES = 32
# An entry takes about 0.5 kB.
_MAX_SIGNAL_TOKENS = 10_000


class PodTokens:
    """Derives the secrets of agents from the signing keys, and makes and verifies tokens.

    Every worker derives the same secrets, so nothing is stored. A different key gives different
    secrets. In every method, `signing_key` is the position of a key among the signing keys.
    """

    def __init__(self, signing_keys: str, clock: Callable[[], float] = time.time) -> None:
        """`signing_keys` is the content of the key file. Raises ValueError."""
        self._clock = clock
        self._private_keys = private_keys(signing_keys)
        # Cached, because minting takes 10 µs, and an agent may get many signals in one minute.
        self._signal_token = lru_cache(_MAX_SIGNAL_TOKENS)(self._mint_signal_token)
        # For agents that have refused the first signing key: the key to use, by workspace id and
        # epoch.
        self._signing_keys: LRUCache[tuple[str, int], int] = LRUCache(_MAX_SIGNAL_TOKENS)

    def runtime_secret(self, workspace_id: str, epoch: int, signing_key: int = 0) -> bytes:
        """The secret with which this agent makes its runtime tokens."""
        return self._secret("runtime", workspace_id, epoch, signing_key)

    def signal_secret(self, workspace_id: str, epoch: int, signing_key: int = 0) -> bytes:
        """The secret that authenticates the control plane to this agent."""
        return self._secret("signal", workspace_id, epoch, signing_key)

    def signal_token(self, workspace_id: str, epoch: int, signing_key: int = 0) -> str:
        """The token of the current minute for a signal to this agent."""
        return self._signal_token(workspace_id, epoch, signing_key, minute_of(self._clock()))

    def signing_key(self, workspace_id: str, epoch: int) -> int:
        """The signing key for tokens to this agent: the first one, until the agent refuses it."""
        if len(self._private_keys) == 1:
            return 0
        return self._signing_keys.get((workspace_id, epoch), 0)

    def note_refusal(self, workspace_id: str, epoch: int, signing_key: int) -> None:
        """Moves this agent to the next key after it has refused a token signed with `signing_key`.

        After the last key comes the first one. Does nothing if there is only one key, or if the
        agent has already been moved.
        """
        if len(self._private_keys) > 1 and signing_key == self.signing_key(workspace_id, epoch):
            self._signing_keys[workspace_id, epoch] = (signing_key + 1) % len(self._private_keys)

    def identify(self, token: str) -> AgentIdentity:
        """The agent that the runtime token belongs to. Raises Failure unauthenticated.

        If the token is authentic, but expired or not yet valid, the failure has the time of the
        control plane, so that the agent can make a valid token.
        """
        named = parse_runtime_token(token)
        if named is None:
            raise errors.unauthenticated("The token is not a runtime token.")
        workspace_id, epoch, minute = named
        for signing_key in range(len(self._private_keys)):
            secret = self.runtime_secret(workspace_id, epoch, signing_key)
            if hmac.compare_digest(token, runtime_token(workspace_id, epoch, secret, minute)):
                break
        else:
            raise errors.unauthenticated("The runtime token is not authentic.")
        now = self._clock()
        if minute not in accepted_minutes(now):
            message = "The runtime token is expired or not yet valid. Make one for this minute."
            raise Failure("unauthenticated", message, unix_seconds=int(now))
        return AgentIdentity(workspace_id, epoch, signing_key)

    def bootstrap_token(self, workspace_id: str, epoch: int, signing_key: int = 0) -> str:
        """The token with which this agent gets its secrets."""
        secret = self._secret("bootstrap", workspace_id, epoch, signing_key)
        return bootstrap_token(workspace_id, epoch, secret)

    def identify_bootstrapping(self, token: str) -> AgentIdentity:
        """The agent that the bootstrap token belongs to. Raises Failure unauthenticated.

        Does not check whether the agent has already registered, which makes the token invalid.
        """
        named = parse_bootstrap_token(token)
        if named is None:
            raise errors.unauthenticated("The token is not a bootstrap token.")
        for signing_key in range(len(self._private_keys)):
            if hmac.compare_digest(token, self.bootstrap_token(*named, signing_key)):
                return AgentIdentity(*named, signing_key)
        raise errors.unauthenticated("The bootstrap token is not authentic.")

    def _secret(self, purpose: str, workspace_id: str, epoch: int, signing_key: int) -> bytes:
        # The epoch is a number and comes last, so no two agents have the same `info`.
        info = f"evershell {purpose} {workspace_id} {epoch}".encode()
        hkdf = HKDF(SHA256(), _SECRET_BYTES, salt=None, info=info)
        return hkdf.derive(self._private_keys[signing_key])

    def _mint_signal_token(
        self, workspace_id: str, epoch: int, signing_key: int, minute: int
    ) -> str:
        return signal_token(self.signal_secret(workspace_id, epoch, signing_key), minute)
