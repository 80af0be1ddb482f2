"""The spans that agents hand over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evershell.server.core.runtime import AgentIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpan:
    """A span of an agent. Ids are numbers."""

    trace_id: int
    span_id: int
    # 0 for the first span of a trace.
    parent_span_id: int
    name: str
    # Nanoseconds since 1970.
    began_at: int
    ended_at: int
    attributes: Mapping[str, str]
    has_failed: bool


class ExportSpans(Protocol):
    """Queues the spans of an agent for the collector. Never waits."""

    def __call__(self, agent: AgentIdentity, spans: Sequence[AgentSpan]) -> None: ...


def discard_spans(agent: AgentIdentity, spans: Sequence[AgentSpan]) -> None:
    """Implements ExportSpans for a control plane that exports no spans."""
