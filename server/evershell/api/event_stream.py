"""Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import json
from collections.abc import Sequence
from typing import Any

from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from evershell.api.call import current
from evershell.api.event_codec import (
    encode_event,
    encode_organization_event,
    encode_organization_heartbeat,
)
from evershell.api.values import rest_fields
from evershell.core import errors
from evershell.core.event import Event
from evershell.core.event_feeds import Heartbeat

HEADER = "last-event-id"
# The type of the event that ends a stream. It is not named `error`, because browsers report a lost
# connection by an event with that name.
ERROR_TYPE = "stream_error"
# How long a client waits before it reconnects, in milliseconds.
_RETRY_MS = 1_000
_MAX_ID = 2**63 - 1
# JSON allows these characters unescaped, but a parser that splits lines at every Unicode line
# separator would end a field there.
_LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}

# The type of the heartbeats of an organization's stream. They are events, because a client must
# store their ids to resume after a long time without events.
_HEARTBEAT_TYPE = "heartbeat"
# The first message of a stream. It sets the content type. Neither this message nor a comment ends
# with an empty line: at an empty line, some libraries would report an event without data.
OPENING = HttpBody(content_type="text/event-stream", data=f"retry: {_RETRY_MS}\n".encode())
HEARTBEAT = HttpBody(data=b": heartbeat\n")


def position(after: int) -> int:
    """The id after which the stream of the current call begins: a `seq`, or a position.

    A client that reconnects repeats the URL of its first call. HEADER then has the id of the last
    event that the client received. Raises Failure validation_error.
    """
    last_id = current().metadata.get(HEADER)
    if not last_id:
        return after
    is_number = last_id.isascii() and last_id.isdigit() and len(last_id) <= len(str(_MAX_ID))
    if not (is_number and int(last_id) <= _MAX_ID):
        raise errors.invalid({HEADER: "must be the id of an event"})
    return int(last_id)


class Frames(Sequence[bytes]):
    """The serialized frames of a batch of events, each made when a watcher first needs it.

    Encoding a large event takes a millisecond, so encoding a whole batch at once would delay other
    calls.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        # A copy: a reference to the batch would be a cycle, because the batch refers to its frames.
        self._events = tuple(events)
        self._frames: list[bytes | None] = [None] * len(events)

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: Any) -> Any:
        encoded = self._frames[index]
        if encoded is None:
            encoded = self._frames[index] = self._frame(self._events[index]).SerializeToString()
        return encoded

    def _frame(self, event: Event) -> HttpBody:
        return frame(event)


class OrganizationFrames(Frames):
    """The frames of events in the stream of an organization."""

    def _frame(self, event: Event) -> HttpBody:
        return _frame(event.type, encode_organization_event(event), event.position)


def frame(event: Event) -> HttpBody:
    """The event of a workspace's stream, with its `seq` as its id."""
    return _frame(event.type, encode_event(event), event.seq)


def organization_heartbeat(heartbeat: Heartbeat) -> HttpBody:
    """A heartbeat of an organization's stream, with its position as its id."""
    message = encode_organization_heartbeat(heartbeat)
    return _frame(_HEARTBEAT_TYPE, message, heartbeat.position)


def error_frame(error: error_pb2.Error) -> HttpBody:
    """The error that ends a stream. It has no id, so a client resumes after the last event."""
    return _frame(ERROR_TYPE, workspace_service_pb2.WatchEventsResponse(error=error))


def organization_error_frame(error: error_pb2.Error) -> HttpBody:
    """The error that ends an organization's stream."""
    return _frame(ERROR_TYPE, workspace_service_pb2.WatchOrganizationResponse(error=error))


def _frame(type_: str, message: Message, id_: int | None = None) -> HttpBody:
    """The id comes last, because some libraries store an id as soon as they have read its line.

    If the id came first and the connection broke after it, they would resume after an event that
    they have not received.
    """
    end = "" if id_ is None else f"id: {id_}\n"
    return HttpBody(data=f"event: {type_}\ndata: {_json(message)}\n{end}\n".encode())


def _json(message: Message) -> str:
    """The message as JSON on one line, in the form in which the edge prints all other messages."""
    content = rest_fields(message)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        for end, escape in _LINE_ENDS.items():
            text = text.replace(end, escape)
    return text
