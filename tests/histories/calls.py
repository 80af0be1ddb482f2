"""Helpers for writing calls and histories by hand."""

import math
from collections.abc import Iterable
from typing import Any

from evershell.histories.lines import Call, History

WORKSPACE = "ws"


def called(
    name: str,
    answer: dict[str, Any] | None = None,
    *,
    error: str = "",
    details: dict[str, Any] | None = None,
    during: tuple[float, float] | None = None,
    org: str = "",
    **arguments: Any,
) -> Call:
    """A call. Without `during`, it begins after all earlier calls have ended."""
    began, ended = during or (math.nan, math.nan)
    return Call("A", org, name, arguments, began, ended, answer, error, details or {})


def on(name: str, answer: dict[str, Any] | None = None, **others: Any) -> Call:
    """A call on the workspace WORKSPACE."""
    return called(name, answer, **{"workspace_id": WORKSPACE} | others)


def submit(task: str, workspace_id: str = WORKSPACE, **others: Any) -> Call:
    answer = {"task_id": task, "workspace_id": workspace_id, "status": "submitted"}
    return on("SubmitTask", answer, workspace_id=workspace_id, **others)


def cancel(outcome: str, found: str = "", **others: Any) -> Call:
    return on("CancelTask", {"outcome": outcome, "task_id": found}, **others)


def task(task_id: str, status: str, **others: Any) -> dict[str, Any]:
    """A task. The status `asked` stands for a running task whose cancellation is recorded."""
    asked = {"cancel_requested_at": "2026-01-01T00:00:00Z"} if status == "asked" else {}
    status = "running" if asked else status
    return {"id": task_id, "workspace_id": WORKSPACE, "status": status} | asked | others


def get(task_id: str, status: str, workspace_id: str = WORKSPACE, **others: Any) -> Call:
    answer = task(task_id, status, workspace_id=workspace_id)
    return on("GetTask", answer, workspace_id=workspace_id, task_id=task_id, **others)


def watched(after: int, *events: dict[str, Any], **others: Any) -> Call:
    """A stream that got these events, numbered after `after`, one after another."""
    call = on("WatchEvents", {}, after=after, **others)
    call.messages = [
        (0.0, {"event": {"seq": after + i} | each}) for i, each in enumerate(events, 1)
    ]
    return call


def event(kind: str, status: str = "completed", **others: Any) -> dict[str, Any]:
    completed = {"task_completed": {"status": status}} if kind == "task_completed" else {}
    return {"type": kind, "task_id": "t1", "workspace_id": WORKSPACE} | completed | others


def history(calls: Iterable[Call]) -> History:
    """A history of these calls, in this order. A call without a time takes about a second."""
    now = 0.0
    timed = list(calls)
    for call in timed:
        if math.isnan(call.began):
            call.began, call.ended = now + 0.1, now + 1
        now = max(now, call.began if math.isinf(call.ended) else call.ended)
        count = len(call.messages)
        call.messages = [
            (call.began + 0.5 * i / count, message) for i, (_, message) in enumerate(call.messages)
        ]
    return History(sorted(timed, key=lambda each: each.began), [])
