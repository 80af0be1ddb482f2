"""Encodes events as the messages of WatchEvents and WatchOrganization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from evershell.workspace.v1 import workspace_service_pb2

from evershell.api import payloads
from evershell.api.values import timestamp
from evershell.core.event import Event, EventType
from evershell.core.event_feeds import Heartbeat

_Message = TypeVar("_Message")


def encode_events(events: Sequence[Event]) -> Sequence[bytes]:
    """The serialized message of each event, for the stream of WatchEvents."""
    return [encode_event(event).SerializeToString() for event in events]


def encode_event(item: Event) -> workspace_service_pb2.WatchEventsResponse:
    """The message of WatchEvents that carries the event."""
    return _encode(item, workspace_service_pb2.WatchEventsResponse)


def encode_organization_events(events: Sequence[Event]) -> Sequence[bytes]:
    """The serialized message of each event, for the stream of WatchOrganization."""
    return [encode_organization_event(event).SerializeToString() for event in events]


def encode_organization_event(item: Event) -> workspace_service_pb2.WatchOrganizationResponse:
    """The message of WatchOrganization that carries the event."""
    message = workspace_service_pb2.WatchOrganizationResponse
    return _encode(item, partial(message, position=item.position))


def _encode(item: Event, message: Callable[..., _Message]) -> _Message:
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
        return message(event=event)
    # The constructor is an order of magnitude faster than ParseDict, with the same result.
    try:
        event[item.type] = payloads.convert(item.type, item.payload)
        return message(event=event)
    except (payloads.UnusualError, ValueError):
        event[item.type] = payloads.parse(item.type, item.payload)
        return message(event=event)


def encode_heartbeat(heartbeat: Heartbeat) -> workspace_service_pb2.WatchEventsResponse:
    """The message of WatchEvents that carries the heartbeat."""
    return workspace_service_pb2.WatchEventsResponse(
        heartbeat=workspace_service_pb2.Heartbeat(
            time=timestamp(heartbeat.time), seq=heartbeat.position
        )
    )


def encode_organization_heartbeat(
    heartbeat: Heartbeat,
) -> workspace_service_pb2.WatchOrganizationResponse:
    """The message of WatchOrganization that carries the heartbeat."""
    return workspace_service_pb2.WatchOrganizationResponse(
        heartbeat=workspace_service_pb2.OrganizationHeartbeat(time=timestamp(heartbeat.time)),
        position=heartbeat.position,
    )
