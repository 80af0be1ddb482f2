"""Verifies the tokens with which the control plane calls the agent."""

import hmac
import time
from collections.abc import Callable

from evershell.agents.credential import secret_of
from evershell.pod.tokens import accepted_minutes, minute_of, signal_token


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
        self._secret = secret_of(secret)
        self._clock = clock
        self._minute: int | None = None
        # The values of `authorization` that are accepted in this minute.
        self._accepted: tuple[bytes, ...] = ()

    def verify(self, authorization: str) -> None:
        """Takes the value of the `authorization` header. Raises InvalidTokenError."""
        now = self._clock()
        if minute_of(now) != self._minute:
            self._minute, self._accepted = minute_of(now), self._accepted_at(now)
        presented = authorization.encode(errors="replace")
        if not any(hmac.compare_digest(presented, accepted) for accepted in self._accepted):
            raise InvalidTokenError(
                "A bearer token is needed: the signal token of this workspace, epoch and minute."
            )

    def _accepted_at(self, now: float) -> tuple[bytes, ...]:
        return tuple(
            f"Bearer {signal_token(self._secret, minute)}".encode()
            for minute in accepted_minutes(now)
        )
