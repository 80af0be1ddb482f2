"""The trace to which a call belongs."""

import sys

_HEADERS = ("traceparent", "tracestate")


def trace_headers(traceparent: str | None) -> list[tuple[str, str]]:
    """The headers of the given trace context, else of OpenTelemetry's current one, if any."""
    if traceparent:
        return [("traceparent", traceparent)]
    # A program that makes spans has imported this module.
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [(name, carrier[name]) for name in _HEADERS if name in carrier]
