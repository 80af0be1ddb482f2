"""The bodies of push notifications."""

from a2a.types import a2a_pb2
from google.protobuf.json_format import MessageToJson

from evershell.core.event import Event
from evershell.features.a2a.encode import JSON, messages_of

FORM = "a2a"


def payload(event: Event) -> tuple[str, bytes]:
    """The content type and the body of the push notification of an event of a task.

    The body is one StreamResponse. If the event ends the task with a result, the StreamResponse
    contains the task, with only the fields that the event has.
    """
    *artifacts, status = messages_of(event)
    if artifacts:
        ended = status.status_update
        status = a2a_pb2.StreamResponse(
            task=a2a_pb2.Task(
                id=ended.task_id,
                context_id=ended.context_id,
                status=ended.status,
                artifacts=[each.artifact_update.artifact for each in artifacts],
                metadata=ended.metadata,
            )
        )
    return JSON, MessageToJson(status, indent=None).encode()
