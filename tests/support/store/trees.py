"""Trees of tasks for the tests of the store."""

from evershell.core import task_lifecycle, task_tree
from evershell.core.change import Change, Locked
from evershell.core.ports import Store
from evershell.core.task import Task
from tests.support.store.examples import ORG, USER, complete, permission, task, workspace


async def submit(
    store: Store, parent: Task | None = None, *, user_id: str | None = USER, org_id: str = ORG
) -> Task:
    """Submits a task to a new workspace."""
    idle = workspace(user_id=user_id, org_id=org_id)
    await store.create_workspace(idle)
    return await submit_to(store, idle.id, parent)


async def submit_to(store: Store, workspace_id: str, parent: Task | None = None) -> Task:
    new = task(workspace_id)

    def decide(locked: Locked) -> Change:
        child = new
        if parent is not None:
            checked = task_tree.check_parent(locked.parent, parent.id, permission())
            child = task_tree.child(checked, new)
        return task_lifecycle.submit(locked, child, USER)

    change = await store.transition(workspace_id, decide, ORG, parent.id if parent else None)
    assert change is not None and change.task is not None
    return change.task


async def end(store: Store, ended: Task) -> None:
    at = await store.get_workspace(ended.workspace_id)
    assert at is not None
    await complete(store, at, ended.id)
