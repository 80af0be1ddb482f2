"""The queries that read without a lock.

They name their columns, so that a later migration which adds a column does not break prepared
statements.
"""

from server.store.rows import EVENT_COLUMNS, TASK_COLUMNS, WORKSPACE_COLUMNS

_WORKSPACE = ", ".join(WORKSPACE_COLUMNS)
_TASK = ", ".join(TASK_COLUMNS)
_EVENT = ", ".join(EVENT_COLUMNS)
_OF_W = ", ".join(f"w.{column}" for column in WORKSPACE_COLUMNS)
_OF_T = ", ".join(f"t.{column}" for column in TASK_COLUMNS)

GET_WORKSPACE = f"SELECT {_WORKSPACE} FROM workspaces WHERE id = %s"
LIST_WORKSPACES = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE org_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
LIST_OWN_WORKSPACES = (
    f"SELECT {_WORKSPACE} FROM workspaces "
    "WHERE org_id = %s AND created_by_user_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
LIST_WANTED_PODS = (
    f"SELECT {_WORKSPACE} FROM workspaces "
    "WHERE status IN ('provisioning', 'idle', 'busy', 'stopping') ORDER BY id"
)
LIST_CANCELLATIONS = (
    f"SELECT {_OF_W}, {_OF_T} FROM workspaces w JOIN tasks t ON t.id = w.current_task_id "
    "WHERE t.cancel_requested_at IS NOT NULL ORDER BY w.id"
)
COUNT_WORKSPACES = "SELECT status, count(*) FROM workspaces GROUP BY status"
GET_TASK = f"SELECT {_TASK} FROM tasks WHERE id = %s AND workspace_id = %s"
GET_WORKSPACE_WITH_TASK = (
    f"SELECT {_OF_W}, {_OF_T} FROM workspaces w "
    "LEFT JOIN tasks t ON t.id = %s AND t.workspace_id = w.id WHERE w.id = %s"
)
LIST_TASKS = (
    f"SELECT {_TASK} FROM tasks WHERE workspace_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
LIST_EVENTS = (
    f"SELECT {_EVENT} FROM events WHERE workspace_id = %s AND seq > %s ORDER BY seq LIMIT %s"
)
