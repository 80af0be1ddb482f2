"""Finds what is due in the store in memory, by the rules of the core."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from evershell.core import task_lifecycle, task_limits
from evershell.core.bounds import Bounds
from evershell.core.change import Locked
from evershell.core.due import Due, DueWork, Kind, Place, next_step
from evershell.core.task import Task
from evershell.core.workspace import WANTS_POD, Workspace
from evershell.store.memory.cancellations import would_change

_NO_OUTAGE = datetime.min.replace(tzinfo=UTC)


def due(
    workspaces: Mapping[str, Workspace],
    tasks: Mapping[str, Task],
    now: datetime,
    wanted: Mapping[Kind, Place | None],
    limit: int,
    bounds: Bounds,
) -> DueWork:
    """See core.ports.Fleet.due. `since` of an overdue workspace is the time of its last change."""
    every = [*_of_workspaces(workspaces, tasks, now, bounds), *_trees(workspaces, tasks, now)]
    rows: dict[Kind, Sequence[Due]] = {}
    for kind, after in wanted.items():
        found = sorted((each for each in every if each.kind is kind), key=lambda each: each.place)
        rows[kind] = [each for each in found if after is None or each.place > after][:limit]
    requested = [each.since for each in every if each.kind is Kind.CANCELLATION]
    return DueWork(rows, len(requested), min(requested, default=None))


def _of_workspaces(
    workspaces: Mapping[str, Workspace], tasks: Mapping[str, Task], now: datetime, bounds: Bounds
) -> Iterator[Due]:
    for each in workspaces.values():
        task = tasks.get(each.current_task_id or "")
        since, lease = each.updated_at, each.lease_expires_at
        if bounds.violation(each, task, now, _NO_OUTAGE):
            yield Due(Kind.OVERDUE, since, each, task if task and task.cancel else None)
        if each.status in WANTS_POD and lease is not None and lease < now:
            yield Due(Kind.LEASE, lease, each)
        if each.awaits_controller:
            yield Due(next_step(each), since, each)
        if task is not None and task.cancel is not None:
            yield Due(Kind.CANCELLATION, task.cancel.requested_at, each, task)
            if each.is_waking:
                yield Due(Kind.UNSTARTED, task.cancel.requested_at, each, task)
        if task is not None and task.started_at and task.limits.max_duration_seconds is not None:
            reached_at = task.started_at + timedelta(seconds=task.limits.max_duration_seconds)
            limited = task_lifecycle.apply_limits(Locked(each, task), now)
            if reached_at <= now and limited.task != task:
                yield Due(Kind.TASK_LIMIT, reached_at, each, task)


def _trees(
    workspaces: Mapping[str, Workspace], tasks: Mapping[str, Task], now: datetime
) -> Iterator[Due]:
    trees: dict[str, list[Task]] = {}
    for each in tasks.values():
        if each.in_limited_tree:
            trees.setdefault(each.root_id, []).append(each)
    for root_id, of_tree in trees.items():
        root, usage = tasks[root_id], [each.used for each in of_tree]
        force_after = root.limits.force_after_seconds
        force_at = None if force_after is None else now + timedelta(seconds=force_after)
        costs = [each.cost_nanos for each in usage if each.cost_nanos is not None]
        used = replace(
            root.used,
            cost_nanos=sum(costs) if len(costs) == len(usage) else None,
            input_tokens=sum(each.input_tokens for each in usage),
            output_tokens=sum(each.output_tokens for each in usage),
        )
        root = replace(root, usage=used, open_iteration=None)
        is_changed = any(
            not each.status.is_terminal and would_change(each, force_at) for each in of_tree
        )
        if is_changed and task_limits.reached(root, now):
            since = root.started_at or root.completed_at or root.created_at
            yield Due(Kind.TREE_LIMIT, since, workspaces[root.workspace_id], root)
