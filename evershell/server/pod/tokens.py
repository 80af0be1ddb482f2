"""The tokens between the control plane and its agents.

An agent calls RuntimeService with a runtime token: a JWT (RFC 7519) that the control plane signs
with its Ed25519 key (RFC 8037, RFC 9864). evershell/server/auth/pod_tokens.py mints it.

The control plane calls AgentService with a signal token: an HMAC (RFC 2104) of the current minute.
Its key is the signal secret, which the control plane derives for each workspace and epoch, and
gives to the agent at its start.
"""

import hmac

ISSUER = "evershell"
# The audience of a runtime token.
RUNTIME_AUDIENCE = "runtime"
# The length of a signal secret.
SIGNAL_SECRET_BYTES = 32

_SECONDS_PER_MINUTE = 60


def minute_of(seconds: float) -> int:
    """The minute of a time in seconds since 1970."""
    return int(seconds // _SECONDS_PER_MINUTE)


def signal_token(secret: bytes, minute: int) -> str:
    """The signal token of a minute, in hexadecimal digits."""
    return hmac.digest(secret, b"%d" % minute, "sha256").hex()
