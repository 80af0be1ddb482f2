"""Encodes tasks and events for A2A. The metadata has the fields that A2A does not have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from a2a.types import a2a_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict

from evershell.api import codec
from evershell.api.event_codec import encode_event
from evershell.api.values import rest_fields, timestamp
from evershell.core.event import Event, EventType
from evershell.core.task import Task, TaskStatus
from evershell.features.a2a.decode import MESSAGE_ID, TEXT
from evershell.features.a2a.states import STATES

# The media type of A2A's JSON.
JSON = "application/a2a+json"
# The maximum length of an update's text for an iteration. The metadata has the whole text.
_MAX_TEXT_CHARACTERS = 10_000


def encode_list(
    listed: Sequence[Task],
    next_page_token: str,
    total_size: int,
    page_size: int,
    request: a2a_pb2.ListTasksRequest,
) -> a2a_pb2.ListTasksResponse:
    """The reply to ListTasks."""
    history_length = request.history_length if request.HasField("history_length") else None
    return a2a_pb2.ListTasksResponse(
        tasks=[
            encode_task(task, history_length, has_artifacts=request.include_artifacts)
            for task in listed
        ],
        next_page_token=next_page_token,
        page_size=page_size,
        total_size=total_size,
    )


def list_json(reply: a2a_pb2.ListTasksResponse, *, has_artifacts: bool) -> HttpBody:
    """The reply as JSON.

    It is encoded here, because the edge can only print all empty fields or none. A2A (section
    3.1.4) requires some fields of the list even if they are empty, but artifacts must be absent
    unless the client asked for them.
    """
    content = MessageToDict(reply)
    for task in content.setdefault("tasks", []):
        if has_artifacts:
            task.setdefault("artifacts", [])
    content.setdefault("nextPageToken", "")
    content.setdefault("totalSize", 0)
    return HttpBody(content_type=JSON, data=json.dumps(content).encode())


def encode_task(
    task: Task, history_length: int | None = None, *, has_artifacts: bool = True
) -> a2a_pb2.Task:
    """The task. `history_length` None means the whole history: the message that began the task."""
    encoded = a2a_pb2.Task(
        id=task.id,
        context_id=task.workspace_id,
        status=a2a_pb2.TaskStatus(
            state=STATES[task.listed_status], timestamp=timestamp(task.changed_at)
        ),
        metadata=_task_facts(task),
    )
    if task.reason:
        message = _message(task.workspace_id, task.id, "status", task.reason)
        encoded.status.message.CopyFrom(message)
    if has_artifacts and task.result:
        encoded.artifacts.append(_result(task.result))
    if history_length != 0:
        encoded.history.append(_request(task))
    return encoded


def _task_facts(task: Task) -> dict[str, Any]:
    """The task as REST shows it, without the id and the texts that the A2A task contains."""
    facts = rest_fields(codec.encode_task(task))
    for name in ("id", "description", "result"):
        del facts[name]
    return facts


def _request(task: Task) -> a2a_pb2.Message:
    """The message that began the task."""
    metadata = dict(task.metadata)
    return a2a_pb2.Message(
        message_id=metadata.pop(MESSAGE_ID, f"{task.id}-request"),
        context_id=task.workspace_id,
        task_id=task.id,
        role=a2a_pb2.ROLE_USER,
        parts=[_text(task.description)],
        metadata=metadata or None,
    )


def _message(workspace_id: str, task_id: str, name: str, text: str) -> a2a_pb2.Message:
    """A message of the agent. `name` is unique within the task."""
    return a2a_pb2.Message(
        message_id=f"{task_id}-{name}",
        context_id=workspace_id,
        task_id=task_id,
        role=a2a_pb2.ROLE_AGENT,
        parts=[_text(text)],
    )


def _text(text: str) -> a2a_pb2.Part:
    return a2a_pb2.Part(text=text, media_type=TEXT)


def _result(text: str) -> a2a_pb2.Artifact:
    return a2a_pb2.Artifact(artifact_id="result", name="result", parts=[_text(text)])


@dataclass(frozen=True, slots=True)
class Update:
    """What a stream with a task's updates sends for an event."""

    # None for an event of the workspace.
    task_id: str | None
    # Whether the event ends the task.
    is_end: bool
    # Serialized messages of the type StreamResponse.
    messages: Sequence[bytes]


def encode_updates(events: Sequence[Event]) -> Sequence[Update]:
    """The update for each event."""
    return [_update(event) for event in events]


def _update(event: Event) -> Update:
    if event.task_id is None:
        return Update(None, is_end=False, messages=())
    is_end = event.type is EventType.TASK_COMPLETED
    messages = [message.SerializeToString() for message in messages_of(event)]
    return Update(event.task_id, is_end, messages)


def messages_of(event: Event) -> Sequence[a2a_pb2.StreamResponse]:
    """The messages of an event of a task. The last message is the task's status."""
    if event.type is EventType.TASK_COMPLETED:
        return [*_artifacts(event), _status(event, STATES[TaskStatus(event.payload["status"])])]
    if event.type is EventType.TASK_SUBMITTED:
        return [_status(event, a2a_pb2.TASK_STATE_SUBMITTED)]
    return [_status(event, a2a_pb2.TASK_STATE_WORKING)]


def _artifacts(event: Event) -> Sequence[a2a_pb2.StreamResponse]:
    result = event.payload.get("result")
    if not result:
        return ()
    update = a2a_pb2.TaskArtifactUpdateEvent(
        task_id=event.task_id,
        context_id=event.workspace_id,
        artifact=_result(result),
        last_chunk=True,
    )
    return (a2a_pb2.StreamResponse(artifact_update=update),)


def _status(event: Event, state: a2a_pb2.TaskState) -> a2a_pb2.StreamResponse:
    facts = rest_fields(encode_event(event).event)
    # The status has no result, because the artifact already contains it.
    if event.type is EventType.TASK_COMPLETED:
        del facts[event.type]["result"]
    update = a2a_pb2.TaskStatusUpdateEvent(
        task_id=event.task_id,
        context_id=event.workspace_id,
        status=a2a_pb2.TaskStatus(state=state, timestamp=timestamp(event.time)),
        metadata=facts,
    )
    text = _update_text(event)
    if text:
        message = _message(event.workspace_id, event.task_id or "", str(event.seq), text)
        update.status.message.CopyFrom(message)
    return a2a_pb2.StreamResponse(status_update=update)


def _update_text(event: Event) -> str:
    """The text of the update; empty if it has none."""
    payload = event.payload
    match event.type:
        case EventType.ITERATION_COMPLETED:
            content = str(payload.get("model_call", {}).get("content", ""))
            return (
                content[:_MAX_TEXT_CHARACTERS] or f"Iteration {payload['number']}{_tools(payload)}"
            )
        case EventType.TASK_CANCEL_REQUESTED:
            intent = payload["cancel"]
            because = f": {intent['reason']}" if intent["reason"] else ""
            return f"{intent['requested_by']} has cancelled the task{because}"
        case EventType.TASK_COMPLETED:
            return str(payload.get("reason", ""))
    return ""


def _tools(payload: Mapping[str, Any]) -> str:
    calls = payload.get("tool_calls") or [payload.get("tool_call") or {}]
    names = ", ".join(call["name"] for call in calls if call.get("name"))
    return f": {names}" if names else ""
