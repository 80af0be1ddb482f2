"""The tokens between the control plane and its agents.

Both directions use the same kind of token: an HMAC (RFC 2104) of the current minute. The control
plane derives two secrets for each workspace and epoch, and gives them to the agent at its start.
No token contains a secret.

- With a runtime token, the agent calls RuntimeService. The token names the workspace, the epoch and
  the minute, because the control plane stores no secrets: it derives the secret from the workspace
  and the epoch.
- With a signal token, the control plane calls AgentService.

A token is accepted in its minute, and in the minutes before and after it.

An agent on Kubernetes gets its secrets in return for a bootstrap token, which is in its spec. A
bootstrap token does not expire with time. It is spent when the agent registers.
"""

import hmac
import re

SECRET_BYTES = 32
# The trailer with which the control plane refuses a runtime token that is expired or not yet valid.
# Its value is the time of the control plane, in seconds since 1970.
TIME_TRAILER = "x-evershell-time"
# The trailer with the error's slug (the name of its code), in every error of RuntimeService.
SLUG_TRAILER = "x-evershell-slug"

_SECONDS_PER_MINUTE = 60
# The tolerated difference between the clocks of the two hosts, including the time in transit.
_CLOCK_SKEW_MINUTES = 1
# Workspace, epoch, minute, HMAC.
_RUNTIME_TOKEN = re.compile(
    r"([A-Za-z0-9_-]{1,128})\.([1-9][0-9]{0,18})\.([0-9]{1,12})\.[0-9a-f]{64}"
)


# Workspace, epoch, HMAC.
_BOOTSTRAP_TOKEN = re.compile(
    r"bootstrap\.([A-Za-z0-9_-]{1,128})\.([1-9][0-9]{0,18})\.[0-9a-f]{64}"
)


def secret_of(digits: str) -> bytes:
    """The secret from its hexadecimal digits in the spec. Raises ValueError if it is not valid."""
    secret = bytes.fromhex(digits)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret must have {SECRET_BYTES} bytes")
    return secret


def minute_of(seconds: float) -> int:
    """The minute of a time in seconds since 1970."""
    return int(seconds // _SECONDS_PER_MINUTE)


def accepted_minutes(seconds: float) -> range:
    """The minutes whose tokens are accepted at this time."""
    minute = minute_of(seconds)
    return range(minute - _CLOCK_SKEW_MINUTES, minute + _CLOCK_SKEW_MINUTES + 1)


def signal_token(secret: bytes, minute: int) -> str:
    """The signal token of a minute."""
    return _code(secret, minute)


def runtime_token(workspace_id: str, epoch: int, secret: bytes, minute: int) -> str:
    """The runtime token of a minute."""
    return f"{workspace_id}.{epoch}.{minute}.{_code(secret, minute)}"


def parse_runtime_token(token: str) -> tuple[str, int, int] | None:
    """The workspace, the epoch and the minute that the token names; None if it is malformed.

    Says nothing about whether the token is authentic.
    """
    match = _RUNTIME_TOKEN.fullmatch(token)
    return (match[1], int(match[2]), int(match[3])) if match else None


def bootstrap_token(workspace_id: str, epoch: int, secret: bytes) -> str:
    """The bootstrap token of an agent. It does not contain the secret."""
    code = hmac.digest(secret, b"bootstrap", "sha256").hex()
    return f"bootstrap.{workspace_id}.{epoch}.{code}"


def parse_bootstrap_token(token: str) -> tuple[str, int] | None:
    """The workspace and the epoch that the token names; None if it is malformed.

    Says nothing about whether the token is authentic.
    """
    match = _BOOTSTRAP_TOKEN.fullmatch(token)
    return (match[1], int(match[2])) if match else None


def _code(secret: bytes, minute: int) -> str:
    return hmac.digest(secret, b"%d" % minute, "sha256").hex()
