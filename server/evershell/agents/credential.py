"""The tokens with which the agent calls the control plane, and the clock that they follow."""

import time
from collections.abc import Callable

from evershell.pod.tokens import SECRET_BYTES, minute_of, runtime_token


def secret_of(digits: str) -> bytes:
    """The secret that the spec has in hexadecimal digits. Raises ValueError if it is none."""
    secret = bytes.fromhex(digits)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret is not of {SECRET_BYTES} bytes")
    return secret


class ControlPlaneClock:
    """What the agent takes for the time of the control plane, in seconds since 1970.

    Begins with the time of this machine at the start of the agent. If the control plane answers
    that its own time differs, that time replaces it. The monotonic clock counts from there, so it
    does not matter if the clock of this machine is set.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._offset_seconds = wall() - clock()

    def __call__(self) -> float:
        return self._clock() + self._offset_seconds

    def set(self, seconds: float) -> None:
        """Takes the control plane's time from it."""
        self._offset_seconds = seconds - self._clock()


class RuntimeCredential:
    """Makes the runtime tokens of an agent (pod/tokens.py)."""

    def __init__(
        self, workspace_id: str, epoch: int, secret: str, clock: ControlPlaneClock
    ) -> None:
        """`secret` is in hexadecimal digits. Raises ValueError if it is not a secret."""
        self._workspace_id = workspace_id
        self._epoch = epoch
        self._secret = secret_of(secret)
        self.clock = clock
        self._minute: int | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call that is sent now."""
        minute = minute_of(self.clock())
        if minute != self._minute:
            token = runtime_token(self._workspace_id, self._epoch, self._secret, minute)
            self._minute, self._metadata = minute, (("authorization", f"Bearer {token}"),)
        return self._metadata
