"""Decodes the spans of agents, within bounds: a tool without a sandbox can act as its agent."""

import re
from collections.abc import Sequence

from evershell.agent.v1 import runtime_service_pb2

from evershell.server.core.errors import Failure
from evershell.server.telemetry.agent_spans import AgentSpan

MAX_SPANS = 512
_MAX_ATTRIBUTES = 16
_MAX_CHARACTERS = 200
_HEXADECIMAL = re.compile("[0-9a-f]+")


def decode_spans(spans: Sequence[runtime_service_pb2.Span]) -> list[AgentSpan]:
    """The spans, with texts cut to their maximum length. Raises Failure validation_error."""
    if len(spans) > MAX_SPANS:
        raise _invalid(f"A call takes {MAX_SPANS} spans at most.")
    return [_decode(span) for span in spans]


def _decode(span: runtime_service_pb2.Span) -> AgentSpan:
    attributes = sorted(span.attributes.items())[:_MAX_ATTRIBUTES]
    if not 0 <= span.start_unix_nanos <= span.end_unix_nanos:
        raise _invalid("A span ends before it begins.")
    return AgentSpan(
        trace_id=_id(span.trace_id, 32),
        span_id=_id(span.span_id, 16),
        parent_span_id=_id(span.parent_span_id, 16) if span.parent_span_id else 0,
        name=span.name[:_MAX_CHARACTERS],
        began_at=span.start_unix_nanos,
        ended_at=span.end_unix_nanos,
        attributes={key[:_MAX_CHARACTERS]: value[:_MAX_CHARACTERS] for key, value in attributes},
        has_failed=span.failed,
    )


def _id(digits: str, length: int) -> int:
    number = int(digits, 16) if len(digits) == length and _HEXADECIMAL.fullmatch(digits) else 0
    if not number:
        raise _invalid(f"The id of a span or trace has {length} hexadecimal digits.")
    return number


def _invalid(message: str) -> Failure:
    return Failure("validation_error", message, fields={})
