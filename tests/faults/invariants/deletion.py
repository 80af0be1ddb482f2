"""A run in which the workspace may be deleted at any moment, among all other steps and faults."""

from hypothesis.stateful import invariant, precondition, rule

from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from tests.faults.invariants.ending import open_gates, repair
from tests.faults.invariants.machine import CancellationMachine
from tests.faults.invariants.product import BOUNDS, CALLER

# Longer than a lease plus the grace period of a deletion.
_LIMIT_SECONDS = round(BOUNDS.lease_seconds) + 30


class DeletionMachine(CancellationMachine):
    """The state machine of cancellations, with an additional rule that deletes the workspace.

    All invariants must still hold.
    """

    @precondition(lambda self: self.may_be_trouble)
    @rule()
    def delete(self) -> None:
        self._troubles += 1
        self.world.run(self.world.delete())

    @invariant()
    def nothing_is_left_behind(self) -> None:
        """When the workspace is removed, its task and its pod have already ended."""
        removed = self.world.removed
        if removed is None:
            return
        assert all(task.status.is_terminal for task in removed.tasks), removed
        assert removed.workspace.status is WorkspaceStatus.DELETING, removed
        assert not self.there(), self.there()

    def end(self) -> None:
        """Repairs every fault, then deletes the workspace. Its removal must take bounded time."""
        self.world.run(self._end())

    async def _end(self) -> None:
        world = self.world
        await repair(world)
        await world.delete()
        for _ in range(_LIMIT_SECONDS):
            await open_gates(world)
            if world.removed is not None:
                break
            await world.advance(1.0)
        removed = world.removed
        assert removed is not None, await world.workspace()
        promised = {call.target_id for call in world.record.calls if call.is_promise}
        ends = {task.id: task.status for task in removed.tasks}
        assert all(ends[each] is TaskStatus.CANCELLED for each in promised if each), ends
        # Agents that were out of reach learn of the deletion from their next call.
        await world.advance(BOUNDS.lease_seconds + 5.0)
        assert not self.there()
        assert await world.observer.get_workspace(world.workspace_id) is None
        found = await world.observer.find_deleted_workspace(world.workspace_id, CALLER.org_id)
        assert found is not None
