"""Changes of a workspace and its task, leases, and the keys that are stored with a change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from evershell.core.change import Change, FirstCall, Locked
from evershell.core.event import AuditEntry
from evershell.core.ports import RENEW_BELOW_SHARE, Leased
from evershell.core.task_tree import Parent
from evershell.store.memory.state import State


class Transitions(State):
    """Changes workspaces, renews leases, and finds the first call with a key."""

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        workspace = self.workspaces.get(workspace_id)
        if workspace is None:
            return None
        hold, parent = self.holds.get(org_id or ""), self._parent(org_id, parent_task_id)
        locked = replace(self._locked(workspace), hold=hold, parent=parent)
        change = decide(locked)
        self._store_key(change.first_call)
        return self._commit(locked, change)

    async def transition_many(
        self,
        workspace_ids: Sequence[str],
        decide: Callable[[Locked], Change | None],
        org_id: str,
        audit: AuditEntry | None = None,
        first_call: Callable[[Sequence[Change]], FirstCall | None] | None = None,
    ) -> Sequence[Change]:
        hold = self.holds.get(org_id)
        free = [
            Locked(each, None, hold)
            for each in map(self.workspaces.get, sorted(set(workspace_ids)))
            if each is not None and each.org_id == org_id and each.current_task_id is None
        ]
        decided = [(locked, decide(locked)) for locked in free]
        changes = [change for _, change in decided if change is not None]
        self._store_key(first_call(changes) if first_call is not None else None)
        self._store_audit_entry(audit)
        return [self._commit(locked, change) for locked, change in decided if change is not None]

    def _parent(self, org_id: str | None, task_id: str | None) -> Parent | None:
        task = self.tasks.get(task_id or "")
        workspace = None if task is None else self.workspaces[task.workspace_id]
        if task is None or workspace is None or workspace.org_id != org_id:
            return None
        of_root = (each for each in self.tasks.values() if task.root_id in each.ancestor_ids)
        return Parent(workspace, task, sum(not each.status.is_terminal for each in of_root))

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        workspace = self.workspaces.get(workspace_id)
        if workspace is None:
            return None
        left = self._seconds_left(workspace)
        is_due = left is not None and left < lease_seconds * RENEW_BELOW_SHARE
        if is_due and not workspace.is_fenced(epoch):
            workspace = self._with_lease(workspace, lease_seconds)
            self.workspaces[workspace_id] = workspace
            left = self._seconds_left(workspace)
        return Leased(self._locked(workspace), float("-inf") if left is None else left)

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        return self._first_call(call)

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        place = (first_call.org_id, first_call.key)
        found = self.first_calls.get(place)
        if found is None or found.task_id != first_call.task_id:
            return answer
        self.first_calls[place] = replace(found, answer=found.answer or answer)
        return self.first_calls[place].answer
