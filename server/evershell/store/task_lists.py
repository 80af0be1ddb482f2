"""Lists of the tasks of a workspace, of a tree, and of an organization."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from evershell.core.caller import Permission
from evershell.core.task import Task, Usage
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter
from evershell.core.validation import MAX_PAGE_CHARACTERS
from evershell.core.workspace import Workspace
from evershell.store.connections import Pool, fetch_all, fetch_one
from evershell.store.rows import (
    TASK_COLUMNS,
    Values,
    task_columns,
    task_of,
    workspace_columns,
    workspace_of,
)

# Sorts after every id, because no id contains a tilde.
AFTER_ALL_IDS = "~"
# The condition of a ListFilter.
_LISTED = (
    "(%s::text[] IS NULL OR CASE WHEN cancel_requested_at IS NOT NULL AND completed_at IS NULL "
    "THEN 'running' ELSE status::text END = ANY(%s::text[])) "
    "AND (%s::timestamptz IS NULL OR coalesce("
    "completed_at, greatest(created_at, started_at, cancel_requested_at)) >= %s::timestamptz)"
)
_COUNT = f"SELECT count(*) AS number FROM tasks WHERE workspace_id = %s AND {_LISTED}"
# A page ends early if its texts are long. The worker would need 30 ms to read the rest, which can
# be 20 MB. The list has one task more than fits into the page, or two, so that the caller sees that
# there are more.
LIST = (
    f"SELECT {task_columns()} FROM ("
    f"SELECT {', '.join(TASK_COLUMNS)}, sum(length(description) + length(result)) OVER ("
    "ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS characters "
    "FROM tasks WHERE {} ORDER BY id DESC LIMIT %s"
    f") t WHERE coalesce(characters, 0) <= {MAX_PAGE_CHARACTERS} ORDER BY id DESC"
)
_LIST_OF_WORKSPACE = LIST.format(f"workspace_id = %s AND id < %s AND {_LISTED}")
# By the indexes tasks_of_root and tasks_of_parent. PostgreSQL does not conclude from the equality
# that the column is not NULL, which is the condition of the indexes.
OF_ROOT = (
    "((ancestor_ids IS NOT NULL AND ancestor_ids[1] = %s) OR (id = %s AND ancestor_ids IS NULL))"
)
OF_PARENT = "(ancestor_ids IS NOT NULL AND ancestor_ids[cardinality(ancestor_ids)] = %s)"
_COVERED = (
    "EXISTS (SELECT FROM workspaces w WHERE w.id = workspace_id AND w.org_id = %s "
    "AND (NOT %s OR w.created_by_user_id = %s))"
)
# Uses the index workspaces_with_task. The ids are in an array, because PostgreSQL might read all
# tasks of the organization for a join.
ACTIVE = (
    "id = ANY (ARRAY(SELECT current_task_id FROM workspaces WHERE org_id = %s "
    "AND current_task_id IS NOT NULL AND (NOT %s OR created_by_user_id = %s)))"
)
# What the iteration that runs has used, as rows.py reads it; NULL if nothing is known.
_OPEN_USAGE = (
    "CASE WHEN completed_at IS NULL AND (open_iteration ->> 'number')::integer = iterations + 1 "
    "THEN open_iteration -> 'usage' END"
)
# Reads the open tasks by the index tasks_in_limited_trees, then the roots, and the usage of each
# tree by the index tasks_of_root.
LIMITED_TREES = (
    "WITH trees AS MATERIALIZED ("
    "SELECT coalesce(ancestor_ids[1], id) AS root_id, "
    "bool_or(cancel_requested_at IS NULL) AS has_uncancelled, "
    "max(coalesce(cancel_force_at, 'infinity')) AS last_force_at FROM tasks "
    "WHERE in_limited_tree AND status IN ('submitted', 'delivered', 'running') GROUP BY 1) "
    f"SELECT {workspace_columns('w.')}, {task_columns('t.')}, used.* "
    "FROM trees JOIN tasks t ON t.id = root_id JOIN workspaces w ON w.id = t.workspace_id "
    "CROSS JOIN LATERAL (SELECT coalesce(sum(input), 0)::bigint AS below_input_tokens, "
    "coalesce(sum(output), 0)::bigint AS below_output_tokens, "
    "CASE WHEN count(*) = count(cost) THEN coalesce(sum(cost), 0) END AS below_cost_nanos "
    f"FROM tasks d CROSS JOIN LATERAL (SELECT {_OPEN_USAGE} AS open) o CROSS JOIN LATERAL (SELECT "
    "input_tokens + coalesce((open ->> 'input_tokens')::bigint, 0) AS input, "
    "output_tokens + coalesce((open ->> 'output_tokens')::bigint, 0) AS output, "
    "cost_nanos + CASE WHEN open IS NULL THEN 0 ELSE (open ->> 'cost_nanos')::bigint END AS cost"
    ") used_by "
    "WHERE d.ancestor_ids IS NOT NULL AND d.ancestor_ids[1] = t.id) used "
    "WHERE has_uncancelled "
    "OR last_force_at > %s::timestamptz + make_interval(secs => t.limit_force_after_seconds)"
)


class TaskLists:
    """Implements Store.list_tasks, count_tasks, list_org_tasks and list_limited_trees."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_tasks(
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Sequence[Task]:
        parameters = (workspace_id, before_id or AFTER_ALL_IDS, *_listed(wanted), limit)
        return await self._read(_LIST_OF_WORKSPACE, parameters)

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        parameters = (workspace_id, *_listed(wanted))
        row = await fetch_one(self._pool, _COUNT, parameters)
        return int(row.number)

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        caller, root_id = permission.caller, wanted.root_task_id
        covered = ACTIVE if wanted.active else _COVERED
        conditions = {
            "workspace_id = %s": (wanted.workspace_id,),
            OF_PARENT: (wanted.parent_task_id,),
            OF_ROOT: (root_id, root_id) if root_id else ("",),
            covered: (caller.org_id, permission.own_only, caller.user_id),
            "id < %s": (before_id or AFTER_ALL_IDS,),
        }
        used = {text: values for text, values in conditions.items() if values[0]}
        values = [value for each in used.values() for value in each]
        query = LIST.format(" AND ".join(used))
        return await self._read(query, (*values, limit))

    async def list_limited_trees(self, now: datetime) -> Sequence[tuple[Workspace, Task]]:
        return [
            (workspace_of(row), replace(root, usage=_usage_of_tree(root, row), open_iteration=None))
            for row in await fetch_all(self._pool, LIMITED_TREES, (now,))
            if (root := task_of(row))
        ]

    async def _read(self, query: str, parameters: Values) -> Sequence[Task]:
        rows = await fetch_all(self._pool, query, parameters)
        return [task for row in rows if (task := task_of(row))]


def _usage_of_tree(root: Task, below: Any) -> Usage:
    """What limits count. The cost is unknown if that of one task is.

    It may be more than 64 bits can hold, because each agent reports tokens as it likes.
    """
    used = root.used
    own, others = used.cost_nanos, below.below_cost_nanos
    return replace(
        used,
        input_tokens=used.input_tokens + below.below_input_tokens,
        output_tokens=used.output_tokens + below.below_output_tokens,
        cost_nanos=None if own is None or others is None else own + int(others),
    )


def _listed(wanted: ListFilter) -> Values:
    """The parameters of _LISTED."""
    statuses = None if wanted.statuses is None else sorted(wanted.statuses)
    return (statuses, statuses, wanted.changed_since, wanted.changed_since)
