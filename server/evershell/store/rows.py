"""Maps rows to core objects and back.

Rows are named tuples (`open_pool`). A statement selects the columns of a workspace under their own
names, and the columns of a task with the prefix `task_`, so that one row can have both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec
from psycopg.types.json import Jsonb, set_json_loads

from evershell.core.event import Event, EventType, NewEvent, Origin
from evershell.core.task import (
    CancelIntent,
    OpenIteration,
    Phase,
    Task,
    TaskLimits,
    TaskStatus,
    Usage,
)
from evershell.core.workspace import Workspace, WorkspaceStatus

Values = Sequence[Any]

WORKSPACE_COLUMNS = tuple(field.name for field in fields(Workspace))
_workspace_values = attrgetter(*WORKSPACE_COLUMNS)
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
    "ancestor_ids",
    "max_cost_nanos",
    "cost_nanos",
    "in_limited_tree",
    "iteration_lost",
    "open_iteration",
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


def workspace_columns(of: str = "") -> str:
    """The columns to select for `workspace_of`, each with the prefix `of`, for example `w.`."""
    return ", ".join(f"{of}{column}" for column in WORKSPACE_COLUMNS)


def task_columns(of: str = "", *, started_calls: bool = False) -> str:
    """The columns to select for `task_of`, each with the prefix `of`, for example `t.`.

    `started_calls` says whether to read the started calls of the open iteration, which may have
    64 KiB. Only a transaction that changes the task needs them.
    """
    columns = {column: f"{of}{column}" for column in TASK_COLUMNS}
    if not started_calls:
        columns["open_iteration"] += " - 'started_calls'"
    return ", ".join(f"{value} AS task_{column}" for column, value in columns.items())


def event_columns(of: str = "") -> str:
    """The columns to select for `event_of`, each with the prefix `of`, for example `e.`."""
    return ", ".join(f"{of}{column}" for column in EVENT_COLUMNS)


def workspace_of(row: Any) -> Workspace:
    """The workspace of a row with `workspace_columns`."""
    return Workspace(
        id=row.id,
        org_id=row.org_id,
        name=row.name,
        status=WorkspaceStatus(row.status),
        status_reason=row.status_reason,
        created_by_user_id=row.created_by_user_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        current_task_id=row.current_task_id,
        epoch=row.epoch,
        last_seq=row.last_seq,
        agent_address=row.agent_address,
        lease_expires_at=row.lease_expires_at,
        run_id=row.run_id,
        task_unnamed_since=row.task_unnamed_since,
        agent_breach=row.agent_breach,
    )


def workspace_values(workspace: Workspace) -> Values:
    """The values of the workspace for WORKSPACE_COLUMNS, in the same order."""
    return tuple(_storable(value) for value in _workspace_values(workspace))


def task_of(row: Any) -> Task | None:
    """The task of a row with `task_columns`; None if an outer join found no task."""
    if row.task_id is None:
        return None
    return Task(
        id=row.task_id,
        workspace_id=row.task_workspace_id,
        description=row.task_description,
        metadata=row.task_metadata,
        max_iterations=row.task_max_iterations,
        status=TaskStatus(row.task_status),
        phase=Phase(row.task_phase),
        iterations=row.task_iterations,
        created_at=row.task_created_at,
        started_at=row.task_started_at,
        completed_at=row.task_completed_at,
        cancel=None if row.task_cancel_requested_at is None else _intent_of(row),
        reason=row.task_reason,
        result=row.task_result,
        forced=row.task_forced,
        usage=Usage(
            input_tokens=row.task_input_tokens,
            output_tokens=row.task_output_tokens,
            model_calls=row.task_model_calls,
            tool_calls=row.task_tool_calls,
            cost_nanos=row.task_cost_nanos,
        ),
        submitted_by=row.task_submitted_by,
        limits=TaskLimits(
            max_duration_seconds=row.task_max_duration_seconds,
            max_total_tokens=row.task_max_total_tokens,
            max_cost_nanos=row.task_max_cost_nanos,
            force_after_seconds=row.task_limit_force_after_seconds,
            include_descendants=row.task_in_limited_tree and not row.task_ancestor_ids,
        ),
        iteration_lost=row.task_iteration_lost,
        open_iteration=_open_iteration_of(row),
        committed_bytes=row.task_committed_bytes,
        ancestor_ids=tuple(row.task_ancestor_ids or ()),
        in_limited_tree=row.task_in_limited_tree,
    )


def _open_iteration_of(row: Any) -> OpenIteration | None:
    stored = row.task_open_iteration
    # The column may be out of date: a worker of an older version does not know the column, but may
    # have committed the iteration or ended the task.
    if (
        stored is None
        or stored["number"] != row.task_iterations + 1
        or row.task_completed_at is not None
    ):
        return None
    return OpenIteration(
        number=stored["number"],
        usage=Usage(**stored["usage"]),
        started_calls=stored.get("started_calls", ()),
    )


def _intent_of(row: Any) -> CancelIntent:
    return CancelIntent(
        requested_by=row.task_cancel_requested_by,
        credential_kind=row.task_cancel_credential_kind,
        requested_at=row.task_cancel_requested_at,
        reason=row.task_cancel_reason,
        request_id=row.task_cancel_request_id,
        force_at=row.task_cancel_force_at,
        force_requested_by=row.task_cancel_force_requested_by,
    )


def task_values(task: Task) -> Values:
    """The values of TASK_COLUMNS, in this order. The caller wraps each dict with `json_value`."""
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
        task.ancestor_ids or None,
        task.limits.max_cost_nanos,
        usage.cost_nanos,
        task.in_limited_tree,
        task.iteration_lost,
        None if task.open_iteration is None else asdict(task.open_iteration),
    )
    return tuple(_storable(value) for value in values)


def event_of(row: Any) -> Event:
    """The event of a row with `event_columns`, and with `position` if the row has it."""
    return Event(
        workspace_id=row.workspace_id,
        seq=row.seq,
        type=EventType(row.type),
        time=row.time,
        task_id=row.task_id,
        payload=row.payload,
        origin=Origin(row.request_id or "", row.trace_id or ""),
        position=getattr(row, "position", 0),
    )


def event_values(workspace_id: str, seq: int, event: NewEvent) -> Values:
    """The values of EVENT_COLUMNS, in this order."""
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


# msgspec takes at most a quarter of the time of the module json, with the same results for jsonb.
dump_json = msgspec.json.Encoder().encode
# Applies to all connections.
set_json_loads(msgspec.json.decode)


def json_value(value: Mapping[str, Any]) -> Jsonb:
    """A value for a jsonb column."""
    return Jsonb(value, dumps=_dumps)


def _dumps(value: Any) -> bytes:
    """JSON for jsonb. Replaces NULs and lone surrogates from tools, which jsonb does not accept."""
    try:
        dumped = dump_json(value)
        if b"\\u0000" not in dumped:
            return dumped
    except UnicodeEncodeError:
        pass
    return dump_json(_storable(value))


def _storable(value: Any) -> Any:
    """The value, with replacements for all characters that PostgreSQL cannot store."""
    match value:
        case str():
            # A member of a StrEnum also becomes a plain string.
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


@cache
def insert(table: str, columns: tuple[str, ...], **expressions: str) -> str:
    """The statement that inserts a row with these columns, and with columns from expressions."""
    names = ", ".join((*columns, *expressions))
    values = ", ".join([*["%s"] * len(columns), *expressions.values()])
    return f"INSERT INTO {table} ({names}) VALUES ({values})"


@cache
def update(table: str, columns: tuple[str, ...]) -> str:
    """The statement that updates these columns of one row."""
    assignments = ", ".join(f"{column} = %s" for column in columns)
    return f"UPDATE {table} SET {assignments} WHERE id = %s"
