"""One time for all: the control plane's, the agents' and the event loop's."""

from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """Stands still until a rule moves it. It moves in steps that a float holds exactly, so that
    what is due is due.
    """

    def __init__(self) -> None:
        self._passed_seconds = 0.0

    def __call__(self) -> datetime:
        """What the database is told."""
        return _START + timedelta(seconds=self._passed_seconds)

    def unix_seconds(self) -> float:
        """Stands for time.time."""
        return _START.timestamp() + self._passed_seconds

    def monotonic(self) -> float:
        """Stands for time.monotonic, which the event loop's timers follow."""
        return 1_000 + self._passed_seconds

    def advance(self, seconds: float) -> None:
        """Whatever is due by then is due at once; it runs when the event loop next does."""
        self._passed_seconds += seconds
