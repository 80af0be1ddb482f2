"""Lists of the tasks of a workspace, and of a tree."""

from collections.abc import Sequence

from evershell.core.caller import Permission
from evershell.core.task import Task
from evershell.core.task_filter import EVERY_TASK, ListFilter
from evershell.core.task_tree import TreeFilter
from evershell.core.validation import MAX_PAGE_CHARACTERS
from evershell.store.connections import Pool, connected
from evershell.store.rows import TASK_COLUMNS, Values, task_columns, task_of

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
_LIST = (
    f"SELECT {task_columns()} FROM ("
    f"SELECT {', '.join(TASK_COLUMNS)}, sum(length(description) + length(result)) OVER ("
    "ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS characters "
    "FROM tasks WHERE {} ORDER BY id DESC LIMIT %s"
    f") t WHERE coalesce(characters, 0) <= {MAX_PAGE_CHARACTERS} ORDER BY id DESC"
)
_LIST_OF_WORKSPACE = _LIST.format(f"workspace_id = %s AND id < %s AND {_LISTED}")
# By the indexes tasks_of_root and tasks_of_parent.
_OF_ROOT = "(ancestor_ids[1] = %s OR (id = %s AND ancestor_ids IS NULL))"
_OF_PARENT = "ancestor_ids[cardinality(ancestor_ids)] = %s"
_COVERED = (
    "EXISTS (SELECT FROM workspaces w WHERE w.id = workspace_id AND w.org_id = %s "
    "AND (NOT %s OR w.created_by_user_id = %s))"
)


class TaskLists:
    """Implements Store.list_tasks, Store.count_tasks and Store.list_tree."""

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
        async with connected(self._pool) as connection:
            row = await (await connection.execute(_COUNT, parameters, prepare=True)).fetchone()
        return 0 if row is None else int(row.number)

    async def list_tree(
        self, permission: Permission, wanted: TreeFilter, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        caller, root_id = permission.caller, wanted.root_task_id
        conditions = {
            "workspace_id = %s": (wanted.workspace_id,),
            _OF_PARENT: (wanted.parent_task_id,),
            _OF_ROOT: (root_id, root_id) if root_id else ("",),
            _COVERED: (caller.org_id, permission.own_only, caller.user_id),
            "id < %s": (before_id or AFTER_ALL_IDS,),
        }
        used = {text: values for text, values in conditions.items() if values[0]}
        values = [value for each in used.values() for value in each]
        query = _LIST.format(" AND ".join(used))
        return await self._read(query, (*values, limit))

    async def _read(self, query: str, parameters: Values) -> Sequence[Task]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True, binary=True)
            return [task for row in await cursor.fetchall() if (task := task_of(row))]


def _listed(wanted: ListFilter) -> Values:
    """The parameters of _LISTED."""
    statuses = None if wanted.statuses is None else sorted(wanted.statuses)
    return (statuses, statuses, wanted.changed_since, wanted.changed_since)
