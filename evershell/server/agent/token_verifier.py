"""Verifies the tokens with which the control plane calls the agent."""

import hmac
import time
from collections.abc import Callable

from evershell.server.pod.tokens import SIGNAL_SECRET_BYTES, minute_of, signal_token

# The tolerated difference between the clocks of the two hosts, transit included, in minutes.
_CLOCK_SKEW_MINUTES = 1


class InvalidTokenError(Exception):
    """The token is not valid. The text says why."""


class TokenVerifier:
    """Verifies signal tokens (pod/tokens.py).

    Accepts the token of the current minute, and those of the minutes before and after it, because
    the clocks of the two hosts may differ. A token is therefore accepted for three minutes by the
    clock of the agent.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        """`secret` is in hexadecimal digits. Raises ValueError if it is not a signal secret."""
        self._secret = bytes.fromhex(secret)
        if len(self._secret) != SIGNAL_SECRET_BYTES:
            raise ValueError(f"the signal secret is not of {SIGNAL_SECRET_BYTES} bytes")
        self._clock = clock
        self._minute: int | None = None
        # The values of `authorization` that are accepted in this minute.
        self._accepted: tuple[bytes, ...] = ()

    def verify(self, authorization: str) -> None:
        """Takes the value of the `authorization` header. Raises InvalidTokenError."""
        minute = minute_of(self._clock())
        if minute != self._minute:
            self._minute, self._accepted = minute, self._accepted_in(minute)
        presented = authorization.encode(errors="replace")
        if not any(hmac.compare_digest(presented, accepted) for accepted in self._accepted):
            raise InvalidTokenError(
                "A bearer token is needed: the signal token of this workspace, epoch and minute."
            )

    def _accepted_in(self, minute: int) -> tuple[bytes, ...]:
        minutes = range(minute - _CLOCK_SKEW_MINUTES, minute + _CLOCK_SKEW_MINUTES + 1)
        return tuple(f"Bearer {signal_token(self._secret, each)}".encode() for each in minutes)
