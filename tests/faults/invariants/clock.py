"""One clock that the control plane, the agents and the event loop share."""

from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """A clock that advances only when a rule of the state machine says so.

    A float represents the steps of the clock exactly, so comparisons with deadlines are exact.
    """

    def __init__(self) -> None:
        self._passed_seconds = 0.0

    def __call__(self) -> datetime:
        """Returns the time as the code under test writes it to the database."""
        return _START + timedelta(seconds=self._passed_seconds)

    def unix_seconds(self) -> float:
        """Replaces time.time."""
        return _START.timestamp() + self._passed_seconds

    def monotonic(self) -> float:
        """Replaces time.monotonic, which the event loop's timers follow."""
        return 1_000 + self._passed_seconds

    def advance(self, seconds: float) -> None:
        """Advances the time. Timers that are then due fire at the event loop's next turn."""
        self._passed_seconds += seconds
