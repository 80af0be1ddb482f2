"""What the fleet controller reads and removes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from evershell.core import errors, task_lifecycle
from evershell.core.event import Event
from evershell.core.ports import Removed
from evershell.core.task import Task
from evershell.core.workspace import WANTS_POD, Workspace, WorkspaceStatus
from evershell.store.memory.cancellations import would_change
from evershell.store.memory.state import State


class Fleet(State):
    """Answers the fleet controller, and removes workspaces and old tasks."""

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        return [each for each in self._wanted() if each.id > after_id][:limit]

    async def list_unsettled(self) -> Sequence[Workspace]:
        return [
            each
            for each in self._sorted()
            if each.awaits_controller or (each.task_unnamed_since or each.agent_breach) is not None
        ]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        lefts = [(each, self._seconds_left(each)) for each in self._wanted()]
        return [each for each, left in lefts if left is not None and left < 0]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        if workspace_id is not None:
            workspace = self.workspaces.get(workspace_id)
            return None if workspace is None else self._seconds_left(workspace)
        lefts = (self._seconds_left(each) for each in self._wanted())
        return min((left for left in lefts if left is not None), default=None)

    async def worker_silences(self) -> Sequence[float]:
        """The process that holds the store is its only worker, and it answers now."""
        return [0.0]

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        current = [(each, self._locked(each).task) for each in self._sorted()]
        return [
            (each, task) for each, task in current if task is not None and task.cancel is not None
        ]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        found = []
        for each in self.workspaces.values():
            locked = self._locked(each)
            task = locked.task
            if task is None or task.started_at is None or task.limits.max_duration_seconds is None:
                continue
            reached_at = task.started_at + timedelta(seconds=task.limits.max_duration_seconds)
            if reached_at <= now and task_lifecycle.apply_limits(locked, now).task != task:
                found.append((reached_at, each.id))
        return [workspace_id for _, workspace_id in sorted(found)][:limit]

    async def list_limited_trees(self, now: datetime) -> Sequence[tuple[Workspace, Task]]:
        trees: dict[str, list[Task]] = {}
        for each in self.tasks.values():
            if each.in_limited_tree:
                trees.setdefault(each.root_id, []).append(each)
        found = []
        for root_id, tasks in trees.items():
            root, usage = self.tasks[root_id], [each.used for each in tasks]
            force_after = root.limits.force_after_seconds
            force_at = None if force_after is None else now + timedelta(seconds=force_after)
            if any(not each.status.is_terminal and would_change(each, force_at) for each in tasks):
                costs = [each.cost_nanos for each in usage if each.cost_nanos is not None]
                used = replace(
                    root.usage,
                    cost_nanos=sum(costs) if len(costs) == len(usage) else None,
                    input_tokens=sum(each.input_tokens for each in usage),
                    output_tokens=sum(each.output_tokens for each in usage),
                )
                root = replace(root, usage=used, open_iteration=None)
                found.append((self.workspaces[root.workspace_id], root))
        return found

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
