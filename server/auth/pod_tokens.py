"""Tokens between the control plane and its agents, both signed by the control plane's Ed25519 key
(RFC 8037, RFC 9864).

A runtime token lets the agent of one workspace and one epoch call RuntimeService, and opens nothing
else. It does not expire: it ends with its epoch, which every transaction of the agent is checked
against. A signal token lets the control plane call the agent of one workspace for a minute.
"""

import json
import time

from cachetools import TTLCache
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from server.core import errors
from server.core.caller import is_name
from server.core.runtime import AgentIdentity

ISSUER = "evershell"
RUNTIME_AUDIENCE = "runtime"
AGENT_AUDIENCE = "agent"
SIGNAL_TOKEN_SECONDS = 60
# PostgreSQL's bigint.
_MAX_EPOCH = 2**63 - 1
_HEADER = {"alg": "Ed25519", "typ": "JWT"}


def new_key() -> str:
    """A new private key, as a JWK in JSON."""
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True))


def public_key(private_jwk: str) -> str:
    """The public half of a key, as a JWK in JSON: all that agents are given."""
    return json.dumps(OKPKey.import_key(json.loads(private_jwk)).as_dict(private=False))


class PodTokens:
    """Mints both kinds and verifies runtime tokens."""

    def __init__(self, private_jwk: str) -> None:
        self._key = OKPKey.import_key(json.loads(private_jwk))
        # A signature takes 50 µs, so a workspace's token serves for half of its life.
        self._signal_tokens: TTLCache[str, str] = TTLCache(
            maxsize=50_000, ttl=SIGNAL_TOKEN_SECONDS / 2
        )
        # A verification takes 130 µs, and an agent shows the same token for all of its life.
        self._identities: TTLCache[str, AgentIdentity] = TTLCache(maxsize=50_000, ttl=300)

    def runtime_token(self, agent: AgentIdentity) -> str:
        """For the agent of this workspace and this epoch."""
        claims = {
            "iss": ISSUER,
            "aud": RUNTIME_AUDIENCE,
            "workspace_id": agent.workspace_id,
            "epoch": agent.epoch,
        }
        return jwt.encode(_HEADER, claims, self._key, algorithms=["Ed25519"])

    def signal_token(self, workspace_id: str) -> str:
        """To call the agent of this workspace."""
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
        """The agent whose runtime token this is. Raises Failure unauthenticated."""
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
        # A bool is an int, too.
        if not is_name(workspace_id) or type(epoch) is not int or not 1 <= epoch <= _MAX_EPOCH:
            raise errors.unauthenticated("The runtime token names no workspace or no epoch.")
        return AgentIdentity(workspace_id, epoch)
