"""The tokens between the control plane and its agents. pod/tokens.py has their claims.

A runtime token lets the agent of one workspace and one epoch call RuntimeService and nothing else.
It does not expire, because every transaction of an agent checks its epoch. A signal token lets the
control plane call the agent of one workspace for a minute.
"""

import json
import time

from cachetools import TTLCache
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from server.core import errors
from server.core.caller import is_valid_name
from server.core.runtime import AgentIdentity
from server.pod.tokens import AGENT_AUDIENCE, ISSUER, RUNTIME_AUDIENCE, SIGNAL_TOKEN_SECONDS

# The largest bigint of PostgreSQL.
_MAX_EPOCH = 2**63 - 1
_HEADER = {"alg": "Ed25519", "typ": "JWT"}


def new_key() -> str:
    """A new private key, as a JWK in JSON."""
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True))


def public_key(private_jwk: str) -> str:
    """The public half of a key, as a JWK in JSON, for the agents."""
    return json.dumps(OKPKey.import_key(json.loads(private_jwk)).as_dict(private=False))


class PodTokens:
    """Mints both kinds of tokens, and verifies runtime tokens."""

    def __init__(self, private_jwk: str) -> None:
        self._key = OKPKey.import_key(json.loads(private_jwk))
        # A signature takes 50 µs, so a signal token is reused for half of its lifetime.
        self._signal_tokens: TTLCache[str, str] = TTLCache(
            maxsize=50_000, ttl=SIGNAL_TOKEN_SECONDS / 2
        )
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

    def signal_token(self, workspace_id: str) -> str:
        """A token for calls to the agent of this workspace."""
        token = self._signal_tokens.get(workspace_id)
        if token is None:
            expires_at = int(time.time()) + SIGNAL_TOKEN_SECONDS
            claims = {
                "iss": ISSUER,
                "aud": AGENT_AUDIENCE,
                "workspace_id": workspace_id,
                "exp": expires_at,
            }
            token = jwt.encode(_HEADER, claims, self._key, algorithms=["Ed25519"])
            self._signal_tokens[workspace_id] = token
        return token

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
