"""Encodes events as the messages of WatchEvents."""

from collections.abc import Sequence
from typing import Any

from evershell.workspace.v1 import workspace_service_pb2

from evershell.api import payloads
from evershell.api.values import timestamp
from evershell.core.event import Event, EventType
from evershell.core.event_feeds import Heartbeat


def encode_events(events: Sequence[Event]) -> Sequence[bytes]:
    """The serialized message of each event, for the stream of WatchEvents."""
    return [encode_event(event).SerializeToString() for event in events]


def encode_event(item: Event) -> workspace_service_pb2.WatchEventsResponse:
    """The message of WatchEvents that carries the event."""
    # Contrary to its type hints, the constructor also accepts a mapping with the fields of a
    # message.
    event: Any = {
        "seq": item.seq,
        "type": item.type,
        "time": timestamp(item.time),
        "workspace_id": item.workspace_id,
        "task_id": item.task_id or "",
        "request_id": item.origin.request_id,
        "trace_id": item.origin.trace_id,
    }
    if item.type is EventType.UNSPECIFIED:
        # Only a later version of the service knows this type of event. The event is sent without
        # its payload, so that the stream has no gap.
        return workspace_service_pb2.WatchEventsResponse(event=event)
    # The constructor is an order of magnitude faster than ParseDict, with the same result.
    try:
        event[item.type] = payloads.convert(item.type, item.payload)
        return workspace_service_pb2.WatchEventsResponse(event=event)
    except (payloads.UnusualError, ValueError):
        event[item.type] = payloads.parse(item.type, item.payload)
        return workspace_service_pb2.WatchEventsResponse(event=event)


def encode_heartbeat(heartbeat: Heartbeat) -> workspace_service_pb2.WatchEventsResponse:
    """The message of WatchEvents that carries the heartbeat."""
    return workspace_service_pb2.WatchEventsResponse(
        heartbeat=workspace_service_pb2.Heartbeat(time=timestamp(heartbeat.time), seq=heartbeat.seq)
    )
