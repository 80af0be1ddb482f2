"""Writes tasks and events as A2A shows them. Everything else of them is in the metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from a2a.types import a2a_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.api import codec
from evershell.api.a2a.decode import MESSAGE_ID, TEXT
from evershell.core.event import Event, EventType
from evershell.core.task import Task, TaskStatus

_STATES = {
    TaskStatus.SUBMITTED: a2a_pb2.TASK_STATE_SUBMITTED,
    TaskStatus.DELIVERED: a2a_pb2.TASK_STATE_SUBMITTED,
    TaskStatus.RUNNING: a2a_pb2.TASK_STATE_WORKING,
    TaskStatus.COMPLETED: a2a_pb2.TASK_STATE_COMPLETED,
    TaskStatus.FAILED: a2a_pb2.TASK_STATE_FAILED,
    TaskStatus.CANCELLED: a2a_pb2.TASK_STATE_CANCELED,
    TaskStatus.DELIVERY_FAILED: a2a_pb2.TASK_STATE_FAILED,
}
# The states of the events that are updates of a task's status.
_EVENT_STATES = {
    EventType.TASK_SUBMITTED: a2a_pb2.TASK_STATE_SUBMITTED,
    EventType.TASK_STARTED: a2a_pb2.TASK_STATE_WORKING,
    EventType.ITERATION_COMPLETED: a2a_pb2.TASK_STATE_WORKING,
    EventType.TASK_CANCEL_REQUESTED: a2a_pb2.TASK_STATE_WORKING,
}
# Of the text of an iteration. The metadata has all of it.
_MAX_TEXT_CHARACTERS = 10_000


def statuses_in(state: int) -> frozenset[TaskStatus]:
    """The statuses of the tasks in this state. A task that is being cancelled counts as running."""
    return frozenset(status for status, shown in _STATES.items() if shown == state)


def encode_task(
    task: Task, history_length: int | None = None, *, has_artifacts: bool = True
) -> a2a_pb2.Task:
    """The task. `history_length` None means the whole history: the message that began it."""
    state, changed_at = _STATES[task.status], task.completed_at
    if changed_at is None:
        started_at = task.started_at or task.created_at
        changed_at = started_at
        if task.cancel is not None:
            state = a2a_pb2.TASK_STATE_WORKING
            changed_at = max(started_at, task.cancel.requested_at)
    encoded = a2a_pb2.Task(
        id=task.id,
        context_id=task.workspace_id,
        status=a2a_pb2.TaskStatus(state=state, timestamp=_timestamp(changed_at)),
        metadata=_task_facts(task),
    )
    if task.reason:
        encoded.status.message.CopyFrom(_said(task, "status", task.reason))
    if has_artifacts and task.result:
        encoded.artifacts.append(_result(task.result))
    if history_length != 0:
        encoded.history.append(_request(task))
    return encoded


def _task_facts(task: Task) -> dict[str, Any]:
    """The task as REST shows it, without what other fields of the message have."""
    facts = _facts(codec.encode_task(task))
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


def _said(task: Task, name: str, text: str) -> a2a_pb2.Message:
    return _message(task.workspace_id, task.id, name, text)


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
    """What the streams of a task send for an event."""

    # None for an event of the workspace.
    task_id: str | None
    # Whether the task has ended with it.
    is_end: bool
    messages: Sequence[a2a_pb2.StreamResponse]


def encode_updates(events: Sequence[Event]) -> Sequence[Update]:
    """The update for each event."""
    return [_update(event) for event in events]


def _update(event: Event) -> Update:
    if event.task_id is None:
        return Update(None, is_end=False, messages=())
    is_end = event.type is EventType.TASK_COMPLETED
    if is_end:
        messages = [
            *_artifacts(event),
            _status(event, _STATES[TaskStatus(event.payload["status"])]),
        ]
    else:
        messages = [_status(event, _EVENT_STATES[event.type])]
    return Update(event.task_id, is_end, messages)


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
    facts = _facts(codec.encode_event(event).event)
    # The artifact has it.
    facts[event.type].pop("result", None)
    update = a2a_pb2.TaskStatusUpdateEvent(
        task_id=event.task_id,
        context_id=event.workspace_id,
        status=a2a_pb2.TaskStatus(state=state, timestamp=_timestamp(event.time)),
        metadata=facts,
    )
    text = _words(event)
    if text:
        message = _message(event.workspace_id, event.task_id or "", str(event.seq), text)
        update.status.message.CopyFrom(message)
    return a2a_pb2.StreamResponse(status_update=update)


def _words(event: Event) -> str:
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


def _facts(message: Message) -> dict[str, Any]:
    """The fields of the message as REST shows them."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
