"""Maps rows to core objects and back.

The mappers read and write the columns in the order of WORKSPACE_COLUMNS, TASK_COLUMNS and
EVENT_COLUMNS.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from evershell.core.event import Event, EventType, NewEvent, Origin
from evershell.core.task import CancelIntent, Phase, Task, TaskLimits, TaskStatus, Usage
from evershell.core.workspace import Workspace, WorkspaceStatus

Row = Sequence[Any]

WORKSPACE_COLUMNS = (
    "id",
    "org_id",
    "name",
    "status",
    "status_reason",
    "created_by_user_id",
    "created_at",
    "updated_at",
    "current_task_id",
    "epoch",
    "last_seq",
    "agent_address",
    "lease_expires_at",
    "run_id",
    "task_unnamed_since",
    "agent_breach",
)
TASK_COLUMNS = (
    "id",
    "workspace_id",
    "description",
    "metadata",
    "max_iterations",
    "status",
    "phase",
    "iterations",
    "created_at",
    "started_at",
    "completed_at",
    "cancel_requested_by",
    "cancel_credential_kind",
    "cancel_requested_at",
    "cancel_reason",
    "cancel_request_id",
    "cancel_force_at",
    "cancel_force_requested_by",
    "reason",
    "result",
    "forced",
    "input_tokens",
    "output_tokens",
    "model_calls",
    "tool_calls",
    "submitted_by",
    "max_duration_seconds",
    "max_total_tokens",
    "limit_force_after_seconds",
    "committed_bytes",
)
EVENT_COLUMNS = (
    "workspace_id",
    "seq",
    "type",
    "time",
    "task_id",
    "request_id",
    "trace_id",
    "payload",
)


def workspace_of(row: Row) -> Workspace:
    """The workspace of a row of WORKSPACE_COLUMNS."""
    return Workspace(
        id=row[0],
        org_id=row[1],
        name=row[2],
        status=WorkspaceStatus(row[3]),
        status_reason=row[4],
        created_by_user_id=row[5],
        created_at=row[6],
        updated_at=row[7],
        current_task_id=row[8],
        epoch=row[9],
        last_seq=row[10],
        agent_address=row[11],
        lease_expires_at=row[12],
        run_id=row[13],
        task_unnamed_since=row[14],
        agent_breach=row[15],
    )


def workspace_values(workspace: Workspace) -> Row:
    """The values of WORKSPACE_COLUMNS."""
    values = (
        workspace.id,
        workspace.org_id,
        workspace.name,
        workspace.status,
        workspace.status_reason,
        workspace.created_by_user_id,
        workspace.created_at,
        workspace.updated_at,
        workspace.current_task_id,
        workspace.epoch,
        workspace.last_seq,
        workspace.agent_address,
        workspace.lease_expires_at,
        workspace.run_id,
        workspace.task_unnamed_since,
        workspace.agent_breach,
    )
    return tuple(_storable(value) for value in values)


def task_of(row: Row) -> Task:
    """The task of a row of TASK_COLUMNS."""
    return Task(
        id=row[0],
        workspace_id=row[1],
        description=row[2],
        metadata=row[3],
        max_iterations=row[4],
        status=TaskStatus(row[5]),
        phase=Phase(row[6]),
        iterations=row[7],
        created_at=row[8],
        started_at=row[9],
        completed_at=row[10],
        cancel=None if row[13] is None else _intent_of(row[11:18]),
        reason=row[18],
        result=row[19],
        forced=row[20],
        usage=Usage(
            input_tokens=row[21], output_tokens=row[22], model_calls=row[23], tool_calls=row[24]
        ),
        submitted_by=row[25],
        limits=TaskLimits(
            max_duration_seconds=row[26], max_total_tokens=row[27], force_after_seconds=row[28]
        ),
        committed_bytes=row[29],
    )


def _intent_of(row: Row) -> CancelIntent:
    return CancelIntent(
        requested_by=row[0],
        credential_kind=row[1],
        requested_at=row[2],
        reason=row[3],
        request_id=row[4],
        force_at=row[5],
        force_requested_by=row[6],
    )


def task_values(task: Task) -> Row:
    """The values of TASK_COLUMNS. The metadata is a mapping that `json_value` has to wrap."""
    cancel, usage = task.cancel, task.usage
    intent = (
        (None,) * 7
        if cancel is None
        else (
            cancel.requested_by,
            cancel.credential_kind,
            cancel.requested_at,
            cancel.reason,
            cancel.request_id,
            cancel.force_at,
            cancel.force_requested_by,
        )
    )
    values = (
        task.id,
        task.workspace_id,
        task.description,
        task.metadata,
        task.max_iterations,
        task.status,
        task.phase,
        task.iterations,
        task.created_at,
        task.started_at,
        task.completed_at,
        *intent,
        task.reason,
        task.result,
        task.forced,
        usage.input_tokens,
        usage.output_tokens,
        usage.model_calls,
        usage.tool_calls,
        task.submitted_by,
        task.limits.max_duration_seconds,
        task.limits.max_total_tokens,
        task.limits.force_after_seconds,
        task.committed_bytes,
    )
    return tuple(_storable(value) for value in values)


def event_of(row: Row) -> Event:
    """The event of a row of EVENT_COLUMNS."""
    return Event(
        workspace_id=row[0],
        seq=row[1],
        type=EventType(row[2]),
        time=row[3],
        task_id=row[4],
        payload=row[7],
        origin=Origin(row[5] or "", row[6] or ""),
    )


def event_values(workspace_id: str, seq: int, event: NewEvent) -> Row:
    """The values of EVENT_COLUMNS."""
    return (
        workspace_id,
        seq,
        str(event.type),
        event.time,
        event.task_id,
        event.origin.request_id or None,
        event.origin.trace_id or None,
        json_value(event.payload),
    )


def json_value(value: Mapping[str, Any]) -> Jsonb:
    """A value for a jsonb column."""
    return Jsonb(value, dumps=_dumps)


def _dumps(value: Any) -> bytes:
    """JSON for jsonb, which accepts no NUL and no lone surrogate. The output of tools has both."""
    try:
        dumped = json.dumps(value, ensure_ascii=False)
        if "\\u0000" not in dumped:
            return dumped.encode()
    except UnicodeEncodeError:
        pass
    return json.dumps(_storable(value), ensure_ascii=False).encode()


def _storable(value: Any) -> Any:
    """The value, with replacements for all characters that PostgreSQL cannot store."""
    match value:
        case str():
            # Also turns a member of an enum into a plain string.
            text = str(value)
            return text if text.isascii() and "\0" not in text else _clean(text)
        case Mapping():
            return {_storable(key): _storable(item) for key, item in value.items()}
        case list() | tuple():
            return [_storable(item) for item in value]
        case _:
            return value


def _clean(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
