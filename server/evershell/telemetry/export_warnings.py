"""Limits what OpenTelemetry logs while a collector is down: one warning a minute, not an error for
each batch of spans.
"""

import logging
import time
from collections.abc import Callable

_WARNING_SECONDS = 60.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    # Its queue is full.
    "opentelemetry.sdk._shared_internal",
)


class _Rarely(logging.Filter):
    """Passes one record a minute, as a warning."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._passed_at: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._monotonic()
        if self._passed_at is not None and now - self._passed_at < _WARNING_SECONDS:
            return False
        self._passed_at = now
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = None
        return True


def limit_export_warnings(monotonic: Callable[[], float] = time.monotonic) -> None:
    """Limits the loggers of the exporter, in this process."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for earlier in [each for each in logger.filters if isinstance(each, _Rarely)]:
            logger.removeFilter(earlier)
        logger.addFilter(_Rarely(monotonic))
