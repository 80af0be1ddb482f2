"""The end of a run: repairs every fault, then checks that every promise is fulfilled."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from evershell.core.bounds import CANCEL_MARGIN, FORCE_MARGIN, RECOVERY_MARGIN
from evershell.core.task import Task, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.faults.invariants.product import BOUNDS, CALLER
from tests.faults.invariants.trouble import Fault, Link
from tests.faults.invariants.wire import Network
from tests.faults.invariants.world import World

# Longer than a lease, than the controller's limits for the start and the stop of an agent, and than
# the bounds of a cancellation.
_LIMIT_SECONDS = 60 + round(
    BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds + CANCEL_MARGIN.total_seconds()
)
# Time for a heartbeat, a scan of the controller, and the steps between them.
_SLACK = timedelta(seconds=5)


def end_all(world: World) -> None:
    """Repairs every fault.

    Checks that every request is fulfilled and that the next task completes.
    """
    world.run(repair(world))
    world.run(_await_ends(world))
    world.run(_check_next_task(world))


async def repair(world: World) -> None:
    world.store.hiccups.clear()
    world.wire.network = Network.GOOD
    world.pods.are_in_reach = True
    world.lead()
    await world.release()
    for agent in world.agents:
        agent.thaw()
        agent.set_link(Link.GOOD)
    # This is longer than any pause between two attempts of an agent or of the controller. After
    # this time, the outages of the run no longer postpone the bounds of a cancellation.
    await world.advance(RECOVERY_MARGIN.total_seconds())
    if any(agent.fault and not agent.is_gone for agent in world.agents):
        # A defective agent never ends its task by itself, so the task is cancelled.
        await world.cancel(CALLER)
        await world.settle()


async def _await_ends(world: World) -> None:
    """Waits until all tasks have ended.

    The model gives a final reply unless the task is cancelled.
    """
    due = _due(world, await world.tasks(), await world.workspace())
    for _ in range(_LIMIT_SECONDS):
        await open_gates(world)
        tasks, at = await world.tasks(), await world.workspace()
        overdue = [
            task
            for task in tasks
            if not task.status.is_terminal and due.get(task.id, world.clock()) < world.clock()
        ]
        assert not overdue, (
            "invariant 2: the control plane does not enforce the bounds",
            due,
            overdue,
        )
        has_settled = at.status in (
            WorkspaceStatus.IDLE,
            WorkspaceStatus.STOPPED,
            WorkspaceStatus.FAILED,
        ) or (at.status is WorkspaceStatus.SUSPENDED and not at.awaits_controller)
        is_alone = all(
            agent.is_gone for agent in world.agents if agent.epoch != at.epoch or not at.is_up
        )
        has_answered = all(call.runner.done() for call in world.record.calls)
        if (
            all(task.status.is_terminal for task in tasks)
            and has_settled
            and is_alone
            and has_answered
        ):
            break
        await world.advance(1.0)
    else:
        raise AssertionError(
            "the run does not end",
            at,
            [task for task in tasks if not task.status.is_terminal],
        )
    promised = {call.target_id for call in world.record.calls if call.is_promise}
    assert all(task.status is TaskStatus.CANCELLED for task in tasks if task.id in promised), (
        "invariant 2: an accepted cancellation was lost"
    )
    # Tools are not checked: if an agent crashed while the controller could not reach it, its tool
    # may still run, because nothing has reported the tool's end.


def _due(world: World, tasks: Sequence[Task], at: Workspace) -> dict[str, datetime]:
    """Returns when each open cancelled task must have ended, even if its agent does nothing."""
    faults = {
        agent.fault for agent in world.agents if agent.epoch == at.epoch and not agent.is_gone
    }
    due = {}
    for task in tasks:
        if task.status.is_terminal or task.cancel is None:
            continue
        iteration = timedelta(seconds=BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds)
        bounds = [task.cancel.requested_at + iteration + CANCEL_MARGIN]
        if task.cancel.force_at is not None:
            recorded_at = task.cancel.requested_at
            bounds.append(max(task.cancel.force_at, recorded_at) + FORCE_MARGIN)
        if faults & {Fault.FORGETS_ITS_TASK, Fault.NAMES_ANOTHER_TASK}:
            bounds.append(world.clock() + timedelta(seconds=BOUNDS.lease_seconds))
        due[task.id] = max(min(bounds), world.clock()) + _SLACK
    return due


async def open_gates(world: World) -> None:
    await world.settle()
    for agent in world.agents:
        if agent.gates.is_tool_called:
            agent.gates.end_tool()
        elif agent.gates.is_model_called:
            is_to_end = world.store.intent(agent.session.task_id) is not None
            agent.gates.reply(final=not is_to_end, tool=False)
    await world.settle()


async def _check_next_task(world: World) -> None:
    for agent in world.agents:
        if agent.fault and not agent.is_gone:
            await agent.crash()
    await world.advance(2.0)
    if (await world.workspace()).status is not WorkspaceStatus.SUSPENDED:
        await world.resume()
        await world.advance(4.0)
    # If the workspace is suspended, the task wakes it.
    await world.submit()
    await world.advance(4.0)
    await open_gates(world)
    last = (await world.task(world.task_ids[-1])) if world.task_ids else None
    assert last is not None and (last.status, last.cancel) == (TaskStatus.COMPLETED, None), (
        "invariants 5 and 6: the next task",
        last,
    )
