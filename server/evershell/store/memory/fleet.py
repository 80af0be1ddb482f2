"""What the fleet controller reads and removes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile

from evershell.core import errors
from evershell.core.bounds import Bounds
from evershell.core.due import DueWork, Kind, Place
from evershell.core.event import Event
from evershell.core.ports import Removed
from evershell.core.workspace import WANTS_POD, Workspace, WorkspaceStatus
from evershell.store.memory.due import due
from evershell.store.memory.state import State


class Fleet(State):
    """Answers the queries of the fleet controller, and removes workspaces and old tasks."""

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        return [each for each in self._wanted() if each.id > after_id][:limit]

    async def due(
        self, now: datetime, wanted: Mapping[Kind, Place | None], limit: int, bounds: Bounds
    ) -> DueWork:
        return due(self.workspaces, self.tasks, now, wanted, limit, bounds)

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        if workspace_id is not None:
            workspace = self.workspaces.get(workspace_id)
            return None if workspace is None else self._seconds_left(workspace)
        lefts = (self._seconds_left(each) for each in self._wanted())
        return min((left for left in lefts if left is not None), default=None)

    async def worker_silences(self) -> Sequence[float]:
        """The only worker is this process, which is alive, because it answers the call."""
        return [0.0]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        return Counter(each.status for each in self.workspaces.values())

    async def count_holds(self) -> int:
        return len(self.holds)

    async def remove_workspace(self, workspace_id: str) -> bool:
        removed = self.workspaces.pop(workspace_id, None)
        if removed is not None:
            assert removed.awaits_removal, removed
            self.deleted[workspace_id] = removed
            self.cards.pop(workspace_id, None)
            self.events.pop(workspace_id, None)
            for task in [each for each in self.tasks.values() if each.workspace_id == workspace_id]:
                del self.tasks[task.id]
            self.publish(workspace_id, watched=True, reconcile=False)
        return True

    async def list_old_logs(
        self, before: datetime, after_id: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        looked_at = sorted(each for each in self.workspaces if each > after_id)[:limit]
        old = [each for each in looked_at if any(e.time < before for e in self.events[each][:1])]
        return old, looked_at[-1] if len(looked_at) == limit else None

    async def remove_old_tasks(
        self, workspace_id: str, before: datetime, after_seq: int, limit: int
    ) -> Removed:
        if workspace_id not in self.workspaces:
            raise errors.workspace_not_found(workspace_id)
        later = [event for event in self.events[workspace_id] if event.seq > after_seq][:limit]
        removed = list(takewhile(lambda event: not self._stays(event, before), later))
        count = len(self.tasks)
        for event in removed:
            self.events[workspace_id].remove(event)
            self.tasks.pop(event.task_id or "", None)
        last_seq = removed[-1].seq if removed else after_seq
        return Removed(count - len(self.tasks), len(removed), last_seq)

    def _stays(self, event: Event, before: datetime) -> bool:
        if event.task_id is None:
            return event.time >= before
        task = self.tasks.get(event.task_id)
        if task is None:
            return False
        return (
            task.completed_at is None
            or task.completed_at >= before
            or any(
                each.root_id == task.root_id and each.completed_at is None
                for each in self.tasks.values()
            )
        )

    async def oldest_end(self) -> datetime | None:
        ended = [each for each in self.tasks.values() if each.completed_at is not None]
        return min(ended, key=lambda each: each.id).completed_at if ended else None

    def _wanted(self) -> list[Workspace]:
        return [each for each in self._sorted() if each.status in WANTS_POD]

    def _sorted(self) -> list[Workspace]:
        return sorted(self.workspaces.values(), key=lambda each: each.id)
