"""Ends a stream on which nothing arrives."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHECKS = 3


class IdleLimit:
    """Calls `cancel` if a reader waits longer than the limit. Close it at the end."""

    def __init__(self, cancel: Callable[[], object], limit_seconds: float) -> None:
        self._cancel = cancel
        self._limit_seconds = limit_seconds
        self._waiting_since: float | None = None
        self._closed = threading.Event()
        self.has_passed = False
        threading.Thread(target=self._check, name="evershell-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The reader waits while this context is open."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def close(self) -> None:
        """Ends the checks."""
        self._closed.set()

    def _check(self) -> None:
        while not self._closed.wait(self._limit_seconds / _CHECKS):
            since = self._waiting_since
            if since is not None and time.monotonic() - since >= self._limit_seconds:
                self.has_passed = True
                self._cancel()
                return
