"""One clock for the control plane, the agents and the event loop."""

from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """A clock that only rules advance.

    A float represents its steps exactly, so comparisons with deadlines are exact.
    """

    def __init__(self) -> None:
        self._passed_seconds = 0.0

    def __call__(self) -> datetime:
        """Returns the time that is written to the database."""
        return _START + timedelta(seconds=self._passed_seconds)

    def unix_seconds(self) -> float:
        """Stands for time.time."""
        return _START.timestamp() + self._passed_seconds

    def monotonic(self) -> float:
        """Stands for time.monotonic, which the event loop's timers follow."""
        return 1_000 + self._passed_seconds

    def advance(self, seconds: float) -> None:
        """Advances the time. Timers that are due by then fire at the event loop's next turn."""
        self._passed_seconds += seconds
