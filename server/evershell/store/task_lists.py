"""Lists of the tasks of a workspace, of a tree, and of an organization."""

from dataclasses import asdict
from typing import Any

from evershell.core.caller import Permission
from evershell.core.task import Task
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter
from evershell.core.validation import MAX_PAGE_CHARACTERS, Listed
from evershell.store import scans
from evershell.store.part import Part
from evershell.store.pool import fetch_all, fetch_one
from evershell.store.rows import task_of
from evershell.store.scans import AFTER_ALL_IDS, listed
from evershell.store.statements import statements

SQL = statements("task_lists", **vars(scans.SQL), max_characters=MAX_PAGE_CHARACTERS)


class TaskLists(Part):
    """Implements the lists of tasks of core.ports.Workspaces."""

    async def list_tasks(
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Listed[Task]:
        return await listed(
            self._pool.lists,
            SQL.list_of_workspace,
            _task_of,
            workspace_id=workspace_id,
            before_id=before_id or AFTER_ALL_IDS,
            limit=limit,
            **_values_of(wanted),
        )

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        parameters = _values_of(wanted) | {"workspace_id": workspace_id, "before_id": AFTER_ALL_IDS}
        row = await fetch_one(self._pool.lists, SQL.count_of_workspace, **parameters)
        return int(row.number)

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Listed[Task]:
        pool, query = self._pool.lists, _query_of(wanted)
        parameters: dict[str, Any] = asdict(wanted) | {
            "org_id": permission.caller.org_id,
            "own_only": permission.own_only,
            "user_id": permission.caller.user_id,
            "before_id": before_id or AFTER_ALL_IDS,
            "workspace_ids": list(wanted.workspace_ids),
        }
        found = await listed(pool, query, _task_of, limit=limit, **parameters)
        if query is SQL.list_descendants and found.last_id is None and len(found) < limit:
            # The root is the oldest task of its tree, so it comes last.
            found += [_task_of(row) for row in await fetch_all(pool, SQL.find_root, **parameters)]
        return found


def _query_of(wanted: OrgListFilter) -> str:
    """The query for the filter. If several queries fit, the one that reads the fewest rows."""
    query: str
    if wanted.active:
        several = SQL.list_active_of_named if wanted.workspace_ids else SQL.list_active
        query = SQL.list_active_of_workspace if wanted.workspace_id else several
    elif wanted.parent_task_id:
        query = SQL.list_children
    else:
        assert wanted.root_task_id, "no other filter is used without one of these"
        query = SQL.list_descendants
    return query


def _task_of(row: Any) -> Task:
    task = task_of(row)
    assert task is not None, "no outer join"
    return task


def _values_of(wanted: ListFilter) -> dict[str, Any]:
    statuses = None if wanted.statuses is None else sorted(wanted.statuses)
    return {"statuses": statuses, "changed_since": wanted.changed_since}
