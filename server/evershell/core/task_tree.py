"""Trees of tasks: when a task may get a child, and what a child stores about its ancestors.

docs/trees.md describes trees of tasks. Submitting a child and cancelling a tree both lock the tree
(Store.transition, Store.cancel_tree). So a cancellation of the tree either includes the new child,
or has already cancelled the parent, and then the child is refused.
"""

from dataclasses import dataclass, replace

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.errors import Failure
from evershell.core.task import Task
from evershell.core.workspace import Workspace

# The maximum number of levels of a tree. The root is the first level.
MAX_LEVELS = 16
# How many descendants of a root may be open (not ended). One call can cancel all of them.
MAX_OPEN_DESCENDANTS = 1_000


@dataclass(frozen=True, slots=True)
class Parent:
    """The parent of a task that is being submitted, read under the lock of its tree."""

    workspace: Workspace
    task: Task
    # How many descendants of the tree's root have not ended.
    open_descendants: int


def check_parent(parent: Parent | None, parent_id: str, permission: Permission) -> Parent:
    """Checks that the parent exists and that the caller may cancel it. Returns the parent.

    `permission` is what the caller's scope `workspace:write` permits. Raises Failure task_not_found
    or permission_denied.
    """
    if parent is None:
        raise errors.parent_not_found(parent_id)
    permission.check(parent.workspace, parent.workspace.id)
    return parent


def child(parent: Parent, task: Task) -> Task:
    """The task as a child of `parent`. Raises Failure parent_not_running or tree_limit_reached."""
    above = parent.task
    if above.status.is_terminal or above.cancel is not None:
        state = f"has ended {above.status}" if above.status.is_terminal else "is being cancelled"
        raise Failure(
            "parent_not_running",
            f"Task {above.id} {state}, so it gets no child. Nothing was submitted.",
            workspace_id=above.workspace_id,
            task_id=above.id,
            status=str(above.status),
        )
    if len(above.ancestor_ids) + 2 > MAX_LEVELS:
        raise _limit_reached(above.id, f"is on level {MAX_LEVELS}, the last one", MAX_LEVELS)
    if parent.open_descendants >= MAX_OPEN_DESCENDANTS:
        problem = f"has {MAX_OPEN_DESCENDANTS:,} descendants that have not ended"
        raise _limit_reached(above.root_id, problem, MAX_OPEN_DESCENDANTS)
    return replace(
        task,
        ancestor_ids=(*above.ancestor_ids, above.id),
        in_limited_tree=above.in_limited_tree,
    )


def _limit_reached(task_id: str, problem: str, limit: int) -> Failure:
    message = f"Task {task_id} {problem}. Nothing was submitted."
    return Failure("tree_limit_reached", message, task_id=task_id, limit=limit)
